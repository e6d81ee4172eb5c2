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
_PLANNED = ("tensorrt", "tensorrt-rtx")


class Engine(Protocol):
    """Runs a model: images (N, 3, H, W) float32 -> outputs by name, each (N, ...) float32."""

    name: str

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]: ...

    def describe(self) -> dict[str, Any]:
        """What this engine is: runtime, version, device, threads."""
        ...


def check_engine_name(name: str) -> None:
    """Raise EngineError unless an engine of that name can be loaded by this version."""
    if name in ENGINES:
        return
    if name in _PLANNED:
        raise EngineError(
            f"The engine '{name}' is not part of this version of dec-export: use one of {', '.join(ENGINES)}."
        )
    nearest = difflib.get_close_matches(name, ENGINES, n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise EngineError(f"Unknown engine '{name}'.{hint} Known engines: {', '.join(ENGINES)}.")


def load(bundle: Bundle, name: str = "onnxruntime", *, expose_phi: bool = False, threads: int | None = None) -> Engine:
    """The engine `name` for a bundle; with `expose_phi`, it returns the solved phis as well.

    `threads` limits the CPU threads of one run; None leaves the choice to the runtime.
    Raises EngineError when the engine is unknown or cannot run here.
    """
    check_engine_name(name)
    if name == "torch":
        from dec_export.engines.torch_engine import TorchEngine

        return TorchEngine(bundle.reference(), expose_phi=expose_phi, threads=threads)
    from dec_export.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle.onnx_path, expose_phi=expose_phi, threads=threads)
