"""The folder that keeps the finished chunks of an evaluation, so that an interrupted one goes on where it was."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dec_export.cache import user_cache
from dec_export.errors import DataError
from dec_export.evaluation.chunks import Chunk

# Journals of evaluations that were never finished are removed after this time, and when there are more than this.
MAX_AGE = 30 * 24 * 3600.0
MAX_JOURNALS = 16
# All that is done under the lock of a place with journals takes less time than this, in seconds.
_PATIENCE = 60
_NAME = re.compile(r"[0-9a-f]{16}")


class Journal:
    """The finished chunks of one evaluation. Every chunk is a file, which is complete or absent.

    Only one process at a time has a journal open. Its lock ends with the process, however that ends.
    """

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock

    @staticmethod
    @contextmanager
    def open(fingerprint: str, place: Path | None, *, resume: bool) -> Iterator[Journal]:
        """Open the journal of an evaluation, and empty it unless the evaluation is to be resumed.

        place: the folder where journals lie; None is the user's cache. Raises DataError when another process has the
        journal open, or when the folder cannot be written.
        """
        place = place or user_cache("evaluations")
        folder, lock = place / fingerprint, FileLock(_lock_of(place / fingerprint))
        with _sentences(place):
            place.mkdir(parents=True, exist_ok=True)
            with _all_of(place):
                _acquire(lock)
                _prune(place, folder)
                if not resume and folder.is_dir():
                    shutil.rmtree(folder)
                folder.mkdir(exist_ok=True)
        try:
            yield Journal(folder, lock)
        finally:
            lock.release()

    def holds(self, start: int) -> bool:
        """Return whether the chunk that begins at image `start` is finished; a damaged file is removed."""
        path = self._path(start)
        if not path.is_file():
            return False
        try:
            return Chunk.load(path).first == start
        except DataError:
            path.unlink(missing_ok=True)
            return False

    def add(self, chunk: Chunk) -> None:
        """Keep a finished chunk. Raises DataError when it cannot be written."""
        with _sentences(self.folder):
            chunk.save(self._path(chunk.first))

    def chunks(self, starts: range) -> Iterator[Chunk]:
        """Return the finished chunks in the order of their images."""
        return (Chunk.load(self._path(start)) for start in starts)

    def remove(self) -> None:
        """Remove the journal of an evaluation that has ended."""
        with _all_of(self.folder.parent):
            _remove(self.folder, self._lock)

    def _path(self, start: int) -> Path:
        return self.folder / f"chunk-{start:09d}.npz"


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _all_of(place: Path) -> FileLock:
    """Return the lock under which journals are opened and removed, so that no lock file is removed by surprise."""
    return FileLock(place / "all.lock", timeout=_PATIENCE)


def _acquire(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            "Another process evaluates the same models and images with the same options now: wait for its end."
        ) from error


def _prune(place: Path, ours: Path) -> None:
    """Remove the journals that are old, and the oldest of too many; those that are in use stay."""
    others = [path for path in place.iterdir() if _NAME.fullmatch(path.name) and path.is_dir() and path != ours]
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    for number, path in enumerate(newest_first, 1):
        if number >= MAX_JOURNALS or time.time() - path.stat().st_mtime > MAX_AGE:
            lock = FileLock(_lock_of(path))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _remove(path, lock)


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    _lock_of(folder).unlink(missing_ok=True)


@contextmanager
def _sentences(place: Path) -> Iterator[None]:
    """Turn an error of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The finished part of the evaluation cannot be kept in '{place}': {error.strerror or error}; make room "
            "there, or set XDG_CACHE_HOME to another folder, and repeat the command with --resume."
        ) from error
