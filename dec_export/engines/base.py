"""The protocol of engines, and loading them by name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dec_export.errors import EngineError

if TYPE_CHECKING:
    from dec_export.bundle import Bundle

ENGINES = ("onnxruntime", "torch")
MAX_THREADS = 1024
_PLANNED = ("tensorrt", "tensorrt-rtx")


class Engine(Protocol):
    """Runs a model: images (N, 3, H, W) float32 -> outputs by name, each (N, ...) float32.

    Raises EngineError when the images have another shape or dtype.
    """

    name: str

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


def resolve_engine(name: str) -> str:
    """The engine that a name means; EngineError when this version has none of that name."""
    if name == "auto":
        return ENGINES[0]
    if name in ENGINES:
        return name
    if name in _PLANNED:
        raise EngineError(
            f"The engine '{name}' is not part of this version of dec-export: use one of {', '.join(ENGINES)}."
        )
    nearest = difflib.get_close_matches(name, ENGINES, n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise EngineError(f"Unknown engine '{name}'.{hint} Known engines: {', '.join(ENGINES)}.")


def load(bundle: Bundle, name: str = "auto", *, expose_phi: bool = False, threads: int | None = None) -> Engine:
    """The engine `name` for a bundle; with `expose_phi`, it returns the solved phis as well.

    "auto" is the best engine that this machine has: ONNX Runtime, in this version. `threads` limits the CPU threads
    of one run; None leaves the choice to the runtime.
    Raises EngineError when the engine is unknown or cannot run here.
    """
    name = resolve_engine(name)
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"threads must be from 1 to {MAX_THREADS}, found {threads}.")
    if name == "torch":
        from dec_export.engines.torch_engine import TorchEngine

        return TorchEngine(bundle.reference(), expose_phi=expose_phi, threads=threads)
    from dec_export.engines.onnxruntime_engine import OnnxRuntimeEngine
    from dec_export.onnx_export.export import phi_names

    phis = phi_names(len(bundle.recipe.canonicalizer.coarse_resolution)) if expose_phi else []
    return OnnxRuntimeEngine(bundle.onnx_path, also=phis, threads=threads)
