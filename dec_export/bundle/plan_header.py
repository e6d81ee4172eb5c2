"""The first bytes of a plan file, which hold the program and the version that made it.

`trtexec --getPlanVersionOnly` reads the same bytes. TensorRT answers a plan of another program with a tag or an
assertion; this module raises an error with a sentence.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dec_export.errors import EngineError

if TYPE_CHECKING:
    from dec_export.bundle.plans import PlanName

_HEADER_BYTES = 28
_SIZE_AT, _VERSION_AT = 16, 24


@dataclass(frozen=True)
class PlanFormat:
    """The format of the plans of one program.

    label: the program's name. tag: the first bytes of the file. has_size: whether the header holds the file's size.
    """

    label: str
    tag: bytes
    has_size: bool


PLAN_FORMATS: Mapping[PlanName, PlanFormat] = {
    "tensorrt": PlanFormat("TensorRT", b"ftrt", has_size=False),
    "tensorrt-rtx": PlanFormat("TensorRT for RTX", b"vtrt", has_size=True),
}


def read_plan_version(path: Path, name: PlanName) -> str:
    """Return the version that made a plan of the engine `name`, which the first bytes hold.

    Raises EngineError when the file is no plan or a plan of another engine, or, if the header holds the size, when the
    file is cut short.
    """
    expected = PLAN_FORMATS[name]
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(expected.tag):
        others = [f.label for f in PLAN_FORMATS.values() if f is not expected and header.startswith(f.tag)]
        found = f"a plan of {others[0]}" if others else "something else"
        raise EngineError(f"'{path}' should be a plan of {expected.label} and is {found}: build the bundle again.")
    if expected.has_size:
        (size,) = struct.unpack_from("<Q", header, _SIZE_AT)
        if size != path.stat().st_size:
            raise EngineError(
                f"'{path}' should have {size} bytes by its own header and has {path.stat().st_size}: it was cut short, "
                "so copy or build the bundle again."
            )
    return ".".join(str(byte) for byte in header[_VERSION_AT : _VERSION_AT + 4])
