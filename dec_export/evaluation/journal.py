"""The folder that keeps the finished chunks of an evaluation, so that an interrupted one goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from dec_export.cache import user_cache
from dec_export.errors import DataError
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.plan import Plan


class Journal:
    """The finished chunks of one plan. Every chunk is a file, which is complete or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def open(plan: Plan, folder: Path | None, *, resume: bool) -> Journal:
        """Open the journal of a plan, and empty it unless the evaluation is to be resumed.

        folder: where journals lie; None is the user's cache. Raises DataError when there is nothing to resume.
        """
        place = (folder or user_cache("evaluations")) / plan.fingerprint()
        if resume and not place.is_dir():
            raise DataError(
                "There is no interrupted evaluation of these models, images and options: leave --resume out, or repeat "
                "the options of the evaluation that was interrupted."
            )
        if not resume and place.is_dir():
            shutil.rmtree(place)
        place.mkdir(parents=True, exist_ok=True)
        return Journal(place)

    def holds(self, start: int) -> bool:
        """Return whether the chunk that begins at image `start` is finished."""
        return self._path(start).is_file()

    def add(self, chunk: Chunk) -> None:
        """Keep a finished chunk."""
        chunk.save(self._path(chunk.first))

    def chunks(self, starts: range) -> Iterator[Chunk]:
        """Return the finished chunks in the order of their images."""
        return (Chunk.load(self._path(start)) for start in starts)

    def remove(self) -> None:
        """Remove the journal of an evaluation that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, start: int) -> Path:
        return self.folder / f"chunk-{start:09d}.npz"
