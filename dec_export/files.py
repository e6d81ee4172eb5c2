"""Writing one file: whole or not at all, and, where somebody named it, nothing overwritten unasked."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from dec_export.errors import DecExportError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file, text as UTF-8; a reader sees all of it or what was there before.

    A link is followed: the file that it names is replaced. Raises OSError, which names `path`, and leaves what was
    there before.
    """
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, target)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_new_file(path: Path, *, force: bool, option: str) -> None:
    """Raise DecExportError when `path`, which the command line's `option` names, may not be written."""
    if os.path.lexists(path):
        if not path.is_file():
            raise DecExportError(f"'{path}' exists and is not a file: choose another {option}.")
        if not force:
            raise DecExportError(f"'{path}' exists: choose another {option}, or overwrite it with --force.")
    elif not path.parent.is_dir():
        raise DecExportError(f"'{path.parent}' is not a folder: make it, or choose another {option}.")


def write_new_file(path: Path, content: bytes | str, *, force: bool, option: str) -> None:
    """`write_atomically`, after `check_new_file`."""
    check_new_file(path, force=force, option=option)
    write_atomically(path, content)


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
