"""A plan file, and everything that is checked before TensorRT sees a byte of it.

TensorRT's own answer to a plan that is not for it is a tag or an assertion. The first bytes of a plan tell its
flavour, and the version that made it (TensorRT's own `trtexec --getPlanVersionOnly` reads them); the manifest tells
the rest.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dec_export.engines.tensorrt.flavours import FLAVOURS, TENSORRT, TENSORRT_RTX, Flavour, installed_version
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, why_no_gpu

_Capability = Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]

_HEADER_BYTES = 28
_SIZE_AT, _VERSION_AT = 16, 24
# GPUs that an engine of TensorRT for RTX is for when it is not built for others.
RTX_DEFAULT_CAPABILITY = (8, 0)


class MatrixProducts(BaseModel):
    """How many matrix products of one format the graph has, and how many of them were found in the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph: Annotated[int, Field(ge=0)]
    found: Annotated[int, Field(ge=0)]


class LayerCounts(BaseModel):
    """How many layers an engine has, by format and by type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Annotated[int, Field(ge=0)]
    by_dtype: dict[str, int]
    by_type: dict[str, int]


class PluginUse(BaseModel):
    """Whether an engine holds the plugin's kernels for its `dec` operators, and why, or why not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    used: bool
    detail: str


class PlanEntry(BaseModel):
    """What the manifest says about a plan.

    compute_capabilities: the GPUs that it is for, as "8.9"; with `and_later`, newer ones too. gpu: the one that it was
    built on. precision: for each format, the graph's matrix products and how many of them were found in the engine.
    peak_memory_bytes: of the building process.
    plugin: what became of the `dec` operators, if the model has any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    layers_file: str
    version: str
    cuda: str | None
    gpu: str | None
    compute_capabilities: Annotated[tuple[_Capability, ...], Field(min_length=1)]
    and_later: bool
    options: BuildOptions
    timing_cache: str | None
    precision: dict[str, MatrixProducts]
    layers: LayerCounts
    plugin: PluginUse | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_memory_bytes: int | None

    @property
    def files(self) -> tuple[str, str]:
        """The plan, and the list of the engine's layers."""
        return self.file, self.layers_file

    @property
    def capabilities(self) -> str:
        """The compute capabilities in words."""
        return ", ".join(self.compute_capabilities) + (" and later" if self.and_later else "")

    def takes_capability(self, capability: tuple[int, ...]) -> bool:
        """Whether a GPU of this compute capability, (major, minor), is among those that the plan is for."""
        meant = [tuple(map(int, text.split("."))) for text in self.compute_capabilities]
        return capability in meant or (self.and_later and capability >= min(meant))

    def bound_to_another(self, flavour: Flavour, gpu: Gpu) -> bool:
        """Whether it runs on the GPU alone that it was built on, and this is another."""
        return flavour is TENSORRT and self.options.hardware_compatibility == "none" and gpu.name != self.gpu


def targets(flavour: Flavour, options: BuildOptions, gpu: Gpu | None) -> tuple[list[tuple[int, int]], bool]:
    """The compute capabilities that a plan will be for, and whether newer GPUs may run it too."""
    if flavour is TENSORRT_RTX:
        listed = options.capability_pairs
        return (listed, False) if listed else ([RTX_DEFAULT_CAPABILITY], True)
    if options.hardware_compatibility == "ampere-plus":
        return [(8, 0)], True
    if gpu is None:
        raise EngineError(f"{flavour.label} builds for the GPU at hand, and {why_no_gpu()}.")
    return [gpu.compute_capability], False


def dotted(capability: tuple[int, int]) -> str:
    """A compute capability as it is written: (8, 9) -> "8.9"."""
    return f"{capability[0]}.{capability[1]}"


def check_plan(
    path: Path, flavour: Flavour, entry: PlanEntry, gpu: Gpu | None, *, allow_host_code: bool = False
) -> None:
    """Raise EngineError unless the plan at `path` can be deserialised by what is installed here, on `gpu`.

    The file's size and hash are the bundle's business and were checked before.
    """
    if entry.options.version_compatible and not allow_host_code:
        raise EngineError(
            f"'{path}' is version-compatible, so it carries a library that TensorRT would run on this machine: "
            "allow it with --allow-host-code if you trust where it comes from."
        )
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
        raise EngineError(f"The engine '{flavour.name}' needs a GPU, and {why_no_gpu()}.")
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
    """A version-compatible plan runs with later versions, up to and with the next major one."""
    old, new = _numbers(built), _numbers(installed)
    return old == new or (version_compatible and old <= new and new[0] - old[0] <= 1)


def _numbers(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".") if part.isdigit()]
    return [*parts, 0, 0, 0, 0][:4]


def _check_gpu(path: Path, flavour: Flavour, entry: PlanEntry, gpu: Gpu) -> None:
    if entry.bound_to_another(flavour, gpu):
        raise EngineError(
            f"'{path}' was built on {entry.gpu} and runs on that GPU alone, this machine has {gpu.name}: "
            "build it here, or with --hardware-compatibility."
        )
    if not entry.takes_capability(gpu.compute_capability):
        raise EngineError(
            f"'{path}' is for GPUs of compute capability {entry.capabilities}, this machine's {gpu.name} has "
            f"{dotted(gpu.compute_capability)}: build it on this machine."
        )
