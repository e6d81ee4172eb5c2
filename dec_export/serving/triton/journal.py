"""Changes to a folder that can be undone: renames, new folders, and replaced files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dec_export.files import write_atomically


class Journal:
    """A record of changes, which can undo them. It never changes a file that another program wrote."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def rename(self, source: Path, target: Path) -> None:
        """Move a folder to a path that does not exist."""
        os.rename(source, target)
        self._undo.append(lambda: shutil.rmtree(target, ignore_errors=True))

    def replace(self, source: Path, target: Path) -> None:
        """Move a file to a path, and replace the file there if there is one."""
        before = target.read_bytes() if target.exists() else None
        os.replace(source, target)
        self._undo.append(lambda: target.unlink() if before is None else write_atomically(target, before))

    def take_back(self) -> None:
        """Undo everything, the last change first."""
        for undo in reversed(self._undo):
            with contextlib.suppress(OSError):  # The error that led here is reported instead.
                undo()
        self._undo.clear()


@contextlib.contextmanager
def journal() -> Iterator[Journal]:
    """Give a journal whose changes are undone if the block ends with an exception or an interrupt."""
    kept = Journal()
    try:
        yield kept
    except BaseException:
        kept.take_back()
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that one process or thread at a time runs such a block for it.

    The folder itself is locked. The library filelock would leave a lock file in the user's folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; the server of these repositories runs on Linux.
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
