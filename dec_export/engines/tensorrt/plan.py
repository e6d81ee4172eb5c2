"""The checks of a plan file before TensorRT reads it.

TensorRT answers an unsuitable plan with a tag or an assertion. The first bytes of a plan hold its flavour and the
version that made it (`trtexec --getPlanVersionOnly` reads them); the manifest holds the other facts.
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

# By default, an engine of TensorRT for RTX is built for GPUs from this compute capability on.
RTX_DEFAULT_CAPABILITY = (8, 0)


def targets(flavour: Flavour, options: BuildOptions, gpu: Gpu | None) -> tuple[list[tuple[int, int]], bool]:
    """Return the compute capabilities for which a plan is built, and whether newer GPUs can also run it."""
    if flavour is TENSORRT_RTX:
        listed = options.capability_pairs
        return (listed, False) if listed else ([RTX_DEFAULT_CAPABILITY], True)
    if options.hardware_compatibility == "ampere-plus":
        return [(8, 0)], True
    if gpu is None:
        raise EngineError(f"{flavour.label} builds for this machine's GPU, and {why_no_gpu()}.")
    return [gpu.compute_capability], False


def dotted(capability: tuple[int, int]) -> str:
    """Write a compute capability with a dot: (8, 9) -> "8.9"."""
    return f"{capability[0]}.{capability[1]}"


def check_plan(
    path: Path, flavour: Flavour, entry: PlanEntry, gpu: Gpu | None, *, allow_host_code: bool = False
) -> None:
    """Raise EngineError unless the installed TensorRT can deserialise the plan at `path` on `gpu`.

    The bundle has already checked the file's size and hash.
    """
    if entry.options.version_compatible and not allow_host_code:
        raise EngineError(
            f"'{path}' is version-compatible, so it carries a library that TensorRT would run on this machine: "
            "allow it with --allow-host-code if you trust where it comes from."
        )
    version = read_version(path, flavour)
    if version != entry.version:
        raise EngineError(
            f"'{path}' was made by {flavour.label} {version}, expected {entry.version} as in the manifest: "
            "build the bundle again."
        )
    installed = installed_version(flavour)
    if not _versions_fit(version, installed, entry.options.version_compatible):
        raise EngineError(
            f"'{path}' was built with {flavour.label} {version} and runs only with this version, but {installed} is "
            f"installed: install {version}, or build the bundle again."
        )
    if gpu is None:
        raise EngineError(f"The engine '{flavour.name}' needs a GPU, and {why_no_gpu()}.")
    _check_gpu(path, flavour, entry, gpu)


def read_version(path: Path, flavour: Flavour) -> str:
    """Return the version that made a plan, which its first bytes hold.

    Raises EngineError when the file is no plan, a plan of the other flavour, or (TensorRT for RTX) cut short.
    """
    return read_plan_version(path, flavour.name)


def _versions_fit(built: str, installed: str, version_compatible: bool) -> bool:
    """Return whether a plan runs with an installed version.

    A version-compatible plan runs with later versions, up to and including the next major version.
    """
    old, new = _numbers(built), _numbers(installed)
    return old == new or (version_compatible and old <= new and new[0] - old[0] <= 1)


def _numbers(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".") if part.isdigit()]
    return [*parts, 0, 0, 0, 0][:4]


def _check_gpu(path: Path, flavour: Flavour, entry: PlanEntry, gpu: Gpu) -> None:
    if entry.bound_to_another(flavour, gpu):
        raise EngineError(
            f"'{path}' was built on {entry.gpu} and runs only on this GPU model, but this machine has {gpu.name}: "
            "build it here, or with --hardware-compatibility."
        )
    if not entry.takes_capability(gpu.compute_capability):
        raise EngineError(
            f"'{path}' is for GPUs of compute capability {entry.capabilities}, but this machine's {gpu.name} has "
            f"{dotted(gpu.compute_capability)}: build it on this machine."
        )
