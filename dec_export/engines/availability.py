"""Which engines this machine can build and run, and what is missing for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dec_export.engines.base import CPU_ENGINES, CUDA_ENGINE, ENGINES
from dec_export.engines.tensorrt.flavours import FLAVOURS, Flavour, why_missing
from dec_export.gpu import Gpu, absence, find_gpu
from dec_export.libraries import version_of_package


@dataclass(frozen=True)
class Availability:
    """can_build: a bundle can be made for this engine here. can_run: it can be run here. detail: why, or why not.

    What needs no building, as ONNX Runtime, can be built wherever it runs.
    """

    name: str
    can_build: bool
    can_run: bool
    detail: str


def availability(name: str, gpu: Gpu | None) -> Availability:
    """Look at one engine of `base.ENGINES`, without loading a model."""
    if name in FLAVOURS:
        return _tensorrt(FLAVOURS[name], gpu)
    try:
        detail, works = _PROBES[name](gpu)
    except Exception as error:  # a library that is missing or broken fails in ways of its own
        package = "torch" if name == "torch" else "onnxruntime"
        return Availability(name, False, False, f"does not load ({error}): pip install --force-reinstall {package}")
    return Availability(name, works, works, detail)


def all_availabilities() -> list[Availability]:
    """Every engine, in the order in which `--engine auto` prefers them."""
    try:
        gpu = find_gpu()
    except Exception:  # a PyTorch that does not load; its own line says so
        gpu = None
    return [availability(name, gpu) for name in ENGINES]


def _onnxruntime(_: Gpu | None) -> tuple[str, bool]:
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}, on the CPU", True


def _onnxruntime_cuda(gpu: Gpu | None) -> tuple[str, bool]:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA (pip install onnxruntime-gpu)", False
    return (absence(), False) if gpu is None else (f"ONNX Runtime {onnxruntime.__version__}, on {gpu.name}", True)


def _torch(_: Gpu | None) -> tuple[str, bool]:
    import torch

    return f"PyTorch {torch.__version__}, the reference itself, on the CPU", True


_PROBES: dict[str, Callable[[Gpu | None], tuple[str, bool]]] = {
    CPU_ENGINES[0]: _onnxruntime,
    CPU_ENGINES[1]: _torch,
    CUDA_ENGINE: _onnxruntime_cuda,
}


def _tensorrt(flavour: Flavour, gpu: Gpu | None) -> Availability:
    reason = why_missing(flavour)
    if reason:
        return Availability(flavour.name, False, False, reason)
    version = f"{flavour.label} {version_of_package(flavour.module)}"
    if gpu is not None:
        return Availability(flavour.name, True, True, f"{version}, on {gpu.name}")
    if flavour.builds_without_gpu:
        return Availability(
            flavour.name, True, False, f"{version}; it builds without a GPU, but {absence()} to run it on"
        )
    return Availability(flavour.name, False, False, f"{version} builds for the GPU at hand, and {absence()}")
