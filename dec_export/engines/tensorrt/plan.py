"""A plan file, and everything that is checked before TensorRT sees a byte of it.

TensorRT's own answer to a plan that is not for it is a tag or an assertion. The first bytes of a plan tell its
flavour, and the version that made it (TensorRT's own `trtexec --getPlanVersionOnly` reads them); the manifest tells
the rest.
"""

from __future__ import annotations

from pathlib import Path

from dec_export.bundle.plan_header import read_plan_version
from dec_export.bundle.plans import BuildOptions, LayerCounts, MatrixProducts, PlanEntry, PluginUse
from dec_export.engines.tensorrt.flavours import TENSORRT_RTX, Flavour, installed_version
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, why_no_gpu

__all__ = [
    "LayerCounts",
    "MatrixProducts",
    "PlanEntry",
    "PluginUse",
    "check_plan",
    "dotted",
    "read_version",
    "targets",
]

# GPUs that an engine of TensorRT for RTX is for when it is not built for others.
RTX_DEFAULT_CAPABILITY = (8, 0)


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
    return read_plan_version(path, flavour.name)


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
