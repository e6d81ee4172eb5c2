"""Write files completely or not at all, without overwriting a file that the user did not want to replace."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from dec_export.errors import DecExportError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file, with text as UTF-8. A reader sees either the whole new file or the earlier one.

    If `path` is a link, the file to which it points is replaced. Raises OSError, which names `path`; the earlier file
    is then unchanged.
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
    """Call `check_new_file`, and then `write_atomically`."""
    check_new_file(path, force=force, option=option)
    write_atomically(path, content)


def umask() -> int:
    """Return the umask of this process. Python can only read it by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
