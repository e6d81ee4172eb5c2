"""The protocol of engines, and loading them by name."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dec_export.errors import EngineError

if TYPE_CHECKING:
    from dec_export.bundle.store import Bundle

_LOGGER = logging.getLogger(__name__)

CPU_ENGINES = ("onnxruntime", "torch")
CUDA_ENGINE = "onnxruntime-cuda"
TENSORRT_ENGINES = ("tensorrt", "tensorrt-rtx")
ENGINES = (*TENSORRT_ENGINES, CUDA_ENGINE, *CPU_ENGINES)
MAX_THREADS = 1024


@dataclass(frozen=True)
class RunOptions:
    """How an engine is run.

    threads: CPU threads of one run; None leaves the choice to the runtime. cpu_fallback: ONNX Runtime's CUDA provider
    may give way to its CPU provider. allow_host_code: a version-compatible TensorRT engine may run the library that it
    carries.
    """

    threads: int | None = None
    cpu_fallback: bool = False
    allow_host_code: bool = False


class Engine(Protocol):
    """Runs a model: images (N, 3, H, W) float32 -> outputs by name, each (N, ...) float32.

    exposes_phi: whether the outputs hold the solved phis. smallest_batch, largest_batch: the N that it takes; None is
    any. Raises EngineError when the images have another shape or dtype.
    """

    name: str
    exposes_phi: bool
    smallest_batch: int
    largest_batch: int | None

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]: ...

    def describe(self) -> dict[str, Any]:
        """What this engine is: runtime, version, device, threads."""
        ...


def check_image(image: NDArray[Any], size: int) -> None:
    """Raise EngineError unless `image` is (N, 3, size, size) float32 with N >= 1."""
    if image.dtype != np.float32 or image.ndim != 4 or image.shape[1:] != (3, size, size) or len(image) == 0:
        raise EngineError(
            f"Expected images as float32 of shape (N, 3, {size}, {size}) with N >= 1, "
            f"found {image.dtype} of shape {image.shape}."
        )


def check_engine_name(name: str) -> None:
    """Raise EngineError when there is no engine of that name."""
    if name in ENGINES:
        return
    nearest = difflib.get_close_matches(name, ENGINES, n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise EngineError(f"Unknown engine '{name}'.{hint} Known engines: {', '.join(ENGINES)}.")


def load(
    bundle: Bundle,
    name: str = "auto",
    *,
    expose_phi: bool = False,
    inner: bool = False,
    threads: int | None = None,
    cpu_fallback: bool = False,
    allow_host_code: bool = False,
) -> Engine:
    """The engine `name` for a bundle; with `expose_phi`, it returns the solved phis as well, if it can.

    With `inner`, it returns all tensors that `onnx_export.names` names: phis, the solver's iterates, features.

    "auto" is the best that this machine can run of what the bundle holds; what was tried before it is logged.
    `threads` limits the CPU threads of one run; None leaves the choice to the runtime. `cpu_fallback` lets ONNX
    Runtime's CUDA provider give way to its CPU provider; `allow_host_code` lets a version-compatible TensorRT engine
    run the library that it carries. A TensorRT engine returns the outputs that it was built with, whatever
    `expose_phi` asks.
    Raises EngineError when the engine is unknown, not in the bundle, or cannot run here.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"threads must be from 1 to {MAX_THREADS}, found {threads}.")
    if cpu_fallback and name != CUDA_ENGINE:
        raise EngineError(f"--cpu-fallback is for {CUDA_ENGINE} and would do nothing for '{name}': leave it out.")
    if name == "auto":
        return _load_best(bundle, expose_phi, inner, threads, allow_host_code)
    check_engine_name(name)
    if name in TENSORRT_ENGINES:
        return _load_plan(bundle, name, allow_host_code)
    if name == "torch":
        from dec_export.engines.torch import TorchEngine

        return TorchEngine(bundle.reference(), expose_phi=expose_phi, tap=bundle.tap, inner=inner, threads=threads)
    from dec_export.engines.onnxruntime import OnnxRuntimeEngine
    from dec_export.names import phi_names

    also = phi_names(bundle.recipe.layers) if expose_phi else []
    return OnnxRuntimeEngine(
        bundle.onnx_path,
        also=also,
        inner=inner,
        threads=threads,
        cuda=name == CUDA_ENGINE,
        cpu_fallback=cpu_fallback,
        bfloat16=bundle.manifest.precision == "bf16",
    )


def _load_best(bundle: Bundle, expose_phi: bool, inner: bool, threads: int | None, allow_host_code: bool) -> Engine:
    """The first engine of the bundle that starts, TensorRT before CUDA before the CPU."""
    from dec_export.gpu import find_gpu

    held = [name for name in (*TENSORRT_ENGINES, CUDA_ENGINE) if name == CUDA_ENGINE or name in bundle.manifest.plans]
    for name in held if find_gpu() else []:
        try:
            return load(
                bundle, name, expose_phi=expose_phi, inner=inner, threads=threads, allow_host_code=allow_host_code
            )
        except EngineError as error:
            _LOGGER.warning("The engine '%s' was passed over: %s", name, error)
    return load(bundle, CPU_ENGINES[0], expose_phi=expose_phi, inner=inner, threads=threads)


def _load_plan(bundle: Bundle, name: str, allow_host_code: bool) -> Engine:
    from dec_export.engines.tensorrt.engine import TensorRTEngine
    from dec_export.engines.tensorrt.flavours import FLAVOURS

    if name not in bundle.manifest.plans:
        raise EngineError(f"The bundle '{bundle.path}' holds no engine '{name}': build it with --engine {name}.")
    entry = bundle.manifest.plans[name]
    bundle.verify(entry.file)
    return TensorRTEngine(
        bundle.path / entry.file,
        FLAVOURS[name],
        entry,
        bundle.recipe.backbone.image_size,
        outputs=[output.name for output in bundle.manifest.outputs],
        allow_host_code=allow_host_code,
    )
