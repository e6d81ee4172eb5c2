"""Changes to a folder that can be taken back: renames, new folders, replaced files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dec_export.files import write_atomically


class Journal:
    """Remembers how to undo what it did; nothing that somebody else wrote is touched."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def rename(self, source: Path, target: Path) -> None:
        """Move a folder to a place where there is none."""
        os.rename(source, target)
        self._undo.append(lambda: shutil.rmtree(target, ignore_errors=True))

    def replace(self, source: Path, target: Path) -> None:
        """Put a file in another's place, or where there is none."""
        before = target.read_bytes() if target.exists() else None
        os.replace(source, target)
        self._undo.append(lambda: target.unlink() if before is None else write_atomically(target, before))

    def take_back(self) -> None:
        """Undo everything, the last change first."""
        for undo in reversed(self._undo):
            with contextlib.suppress(OSError):  # the error that led here is the one to tell
                undo()
        self._undo.clear()


@contextlib.contextmanager
def journal() -> Iterator[Journal]:
    """A journal whose changes are taken back when the block ends badly, also by an interrupt."""
    kept = Journal()
    try:
        yield kept
    except BaseException:
        kept.take_back()
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, of all that lock this folder."""
    try:
        import fcntl
    except ImportError:  # Windows; a server of these repositories runs on Linux
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
