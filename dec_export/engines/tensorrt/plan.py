"""A plan file, and everything that is checked before TensorRT sees a byte of it.

TensorRT's own answer to a plan that is not for it is a tag or an assertion. The first bytes of a plan tell its
flavour, and the version that made it (TensorRT's own `trtexec --getPlanVersionOnly` reads them); the manifest tells
the rest.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dec_export.engines.tensorrt.flavours import FLAVOURS, TENSORRT, TENSORRT_RTX, Flavour, installed_version
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import EngineError
from dec_export.gpu import ABSENT, Gpu

_HEADER_BYTES = 28
_SIZE_AT, _VERSION_AT = 16, 24
# GPUs that an engine of TensorRT for RTX is for when it is not built for others.
RTX_DEFAULT_CAPABILITY = (8, 0)


class PlanEntry(BaseModel):
    """What the manifest says about a plan.

    compute_capabilities: the GPUs that it is for, as "8.9"; with `and_later`, newer ones too. gpu: the one that it was
    built on. precision: for each format, the graph's matrix products and how many of them were found in the engine.
    peak_memory_bytes: of the building process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    layers_file: str
    version: str
    cuda: str | None
    gpu: str | None
    compute_capabilities: Annotated[tuple[str, ...], Field(min_length=1)]
    and_later: bool
    options: BuildOptions
    timing_cache: str | None
    precision: dict[str, dict[str, int]]
    layers: dict[str, Any]
    seconds: float
    peak_memory_bytes: int | None

    @property
    def files(self) -> tuple[str, str]:
        """The plan, and the list of the engine's layers."""
        return self.file, self.layers_file


def targets(flavour: Flavour, options: BuildOptions, gpu: Gpu | None) -> tuple[list[tuple[int, int]], bool]:
    """The compute capabilities that a plan will be for, and whether newer GPUs may run it too."""
    if flavour is TENSORRT_RTX:
        listed = options.capability_pairs
        return (listed, False) if listed else ([RTX_DEFAULT_CAPABILITY], True)
    if options.hardware_compatibility == "ampere-plus":
        return [(8, 0)], True
    if gpu is None:
        raise EngineError(f"{flavour.label} builds for the GPU at hand, and {ABSENT}.")
    return [gpu.compute_capability], False


def dotted(capability: tuple[int, int]) -> str:
    """A compute capability as it is written: (8, 9) -> "8.9"."""
    return f"{capability[0]}.{capability[1]}"


def check_plan(path: Path, flavour: Flavour, entry: PlanEntry, gpu: Gpu | None) -> None:
    """Raise EngineError unless the plan at `path` can be deserialised by what is installed here, on `gpu`.

    The file's size and hash are the bundle's business and were checked before.
    """
    version = read_version(path, flavour)
    if version != entry.version:
        raise EngineError(
            f"'{path}' was made by {flavour.label} {version}, the manifest says {entry.version}: "
            "build the bundle again."
        )
    installed = installed_version(flavour)
    if not _versions_fit(version, installed, entry.options.version_compatible):
        raise EngineError(
            f"'{path}' was built with {flavour.label} {version}, installed is {installed}, and a plan runs with its "
            f"own version alone: install {version}, or build the bundle again."
        )
    if gpu is None:
        raise EngineError(f"The engine '{flavour.name}' needs a GPU, and {ABSENT}.")
    _check_gpu(path, flavour, entry, gpu)


def read_version(path: Path, flavour: Flavour) -> str:
    """The version that made a plan, as its first bytes tell it.

    Raises EngineError when it is no plan, a plan of the other flavour, or (TensorRT for RTX) cut short.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(flavour.tag):
        others = [f.label for f in FLAVOURS.values() if f is not flavour and header.startswith(f.tag)]
        found = f"a plan of {others[0]}" if others else "something else"
        raise EngineError(f"'{path}' should be a plan of {flavour.label} and is {found}: build the bundle again.")
    if flavour is TENSORRT_RTX:
        (size,) = struct.unpack_from("<Q", header, _SIZE_AT)
        if size != path.stat().st_size:
            raise EngineError(
                f"'{path}' should have {size} bytes by its own header and has {path.stat().st_size}: it was cut short."
            )
    return ".".join(str(byte) for byte in header[_VERSION_AT : _VERSION_AT + 4])


def _versions_fit(built: str, installed: str, version_compatible: bool) -> bool:
    if not version_compatible:
        return _numbers(built) == _numbers(installed)
    return _numbers(built)[0] == _numbers(installed)[0] and _numbers(built) <= _numbers(installed)


def _numbers(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".") if part.isdigit()]
    return [*parts, 0, 0, 0, 0][:4]


def _check_gpu(path: Path, flavour: Flavour, entry: PlanEntry, gpu: Gpu) -> None:
    meant = [(int(major), int(minor)) for major, minor in (c.split(".") for c in entry.compute_capabilities)]
    here = gpu.compute_capability
    if here in meant or (entry.and_later and here >= min(meant)):
        return
    described = ", ".join(entry.compute_capabilities) + (" and later" if entry.and_later else "")
    remedy = "build it on this machine" if flavour is TENSORRT else f"build it with --compute-capability {dotted(here)}"
    raise EngineError(
        f"'{path}' is for GPUs of compute capability {described}, this machine's {gpu.name} has {dotted(here)}: "
        f"{remedy}."
    )
