"""Writing one file that somebody named: whole or not at all, and nothing overwritten unasked."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from dec_export.errors import DecExportError


def check_new_file(path: Path, *, force: bool, option: str) -> None:
    """Raise DecExportError when `path`, which the command line's `option` names, may not be written."""
    if os.path.lexists(path):
        if not path.is_file():
            raise DecExportError(f"'{path}' exists and is not a file: choose another {option}.")
        if not force:
            raise DecExportError(f"'{path}' exists: choose another {option}, or overwrite it with --force.")
    elif not path.parent.is_dir():
        raise DecExportError(f"'{path.parent}' is not a folder: make it, or choose another {option}.")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees all of it or what was there before; text is UTF-8 with newlines as they are.

    Raises:
        OSError: if it cannot be written; what was there before is untouched.
    """
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_new_file(path: Path, text: str, *, force: bool, option: str) -> None:
    """Write a text file, checked by `check_new_file`; a reader sees all of it or what was there before."""
    check_new_file(path, force=force, option=option)
    write_atomically(path, text)
