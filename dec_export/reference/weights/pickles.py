"""Checks of a PyTorch checkpoint before PyTorch reads it, so that a small file cannot take much memory or time.

PyTorch's own reader of weights executes nothing that it does not know, but it knows arrays of bytes of any size and
codecs that enlarge text, and it finds archives that Python's reader does not.
"""

from __future__ import annotations

import codecs
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

from dec_export.errors import CheckpointError

# PyTorch's archives hold their tensors as files of their own, so the pickle beside them is small.
MAX_PICKLE_BYTES = 64 << 20
# An older file begins with these pickles: a magic number, a version, facts of the system, the content, and the keys.
_PICKLES_OF_AN_OLD_FILE = 5
_END_OF_ARCHIVE, _END_BYTES = b"PK\x05\x06", 22
_BYTE_ARRAYS = {"builtins bytearray", "__builtin__ bytearray"}
_ENCODE = "_codecs encode"
_NAME_OF_A_CODEC = re.compile(r"[A-Za-z0-9_.-]{1,32}")


def check_pickles(path: Path) -> None:
    """Check the pickles of a PyTorch checkpoint without creating what they describe.

    Raises UnpicklingError for an array of bytes, and for a codec other than latin1, with which NumPy's bytes are
    written; CheckpointError when the file is larger when it is unpacked; ValueError when it is damaged.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        for content in _archived(file, path) if is_archive else _leading(file):
            _check(content)


def _archived(file: BinaryIO, path: Path) -> Iterator[BinaryIO | bytes]:
    """Yield the pickles of an archive. The directory that Python reads must be the one that PyTorch finds."""
    size = path.stat().st_size
    file.seek(max(0, size - _END_BYTES))
    if not file.read(4) == _END_OF_ARCHIVE:
        raise ValueError("its directory is not at its end")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size:
            raise CheckpointError(
                f"'{path}' unpacks to {unpacked} bytes, more than its own size: PyTorch writes no such file."
            )
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > MAX_PICKLE_BYTES:
                    raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
                yield archive.read(entry)


def _leading(file: BinaryIO) -> Iterator[BinaryIO | bytes]:
    """Yield the file at each of the pickles with which an older checkpoint begins; the check moves it on."""
    for _ in range(_PICKLES_OF_AN_OLD_FILE):
        here = file.tell()
        if file.read(1) != b"\x80":
            return
        file.seek(here)
        yield file


def _check(content: BinaryIO | bytes) -> None:
    encodes, texts = False, set()
    for opcode, argument, position in pickletools.genops(content):
        if position is not None and position > MAX_PICKLE_BYTES:
            raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
        if opcode.name in ("BYTEARRAY8", "NEXT_BUFFER") or (opcode.name == "GLOBAL" and argument in _BYTE_ARRAYS):
            raise UnpicklingError("it makes an array of bytes")
        encodes |= opcode.name == "GLOBAL" and argument == _ENCODE
        if isinstance(argument, str) and opcode.name != "GLOBAL" and len(argument) <= 32:
            texts.add(argument)
    if encodes and any(map(_is_other_codec, texts)):
        raise UnpicklingError("it encodes text otherwise than NumPy does")


def _is_other_codec(text: str) -> bool:
    if not _NAME_OF_A_CODEC.fullmatch(text):
        return False
    try:
        return codecs.lookup(text).name != "iso8859-1"
    except (LookupError, ValueError):
        return False
