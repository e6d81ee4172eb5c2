"""What an engine is: something that runs a model, what it says of itself, and what may be asked of a run.

This module imports no library, so that engines can be listed where none is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from dec_export.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_THREADS = 1024


@dataclass(frozen=True)
class EngineDetails:
    """What an engine is. Engines add facts of their own in subclasses.

    device: "cpu", "cuda", or the GPU's name; the one that really runs the model.
    """

    runtime: str
    version: str
    device: str

    def as_dict(self) -> dict[str, Any]:  # JSON, as manifest and reports hold it
        """The facts as JSON values, in the order in which they were declared."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True)
class RunOptions:
    """How an engine is to run.

    threads: the CPU threads of one run, from 1 to 1024; None leaves the choice to the runtime. cpu_fallback: an engine
    whose GPU does not start may run on the CPU. allow_host_code: a version-compatible TensorRT engine may run the
    library that it carries. Raises EngineError for another number of threads.
    """

    threads: int | None = None
    cpu_fallback: bool = False
    allow_host_code: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise EngineError(f"threads must be from 1 to {MAX_THREADS}, found {self.threads}.")


@dataclass(frozen=True)
class Shown:
    """Which tensors an engine returns beside the model's outputs, if it can.

    phi: the solved phis. inner: all tensors that `dec_export.names` names: phis, the solver's iterates, features.
    """

    phi: bool = False
    inner: bool = False


DEFAULT_OPTIONS = RunOptions()


class Engine(Protocol):
    """Runs a model: images (N, 3, H, W) float32 -> outputs by name, each (N, ...) float32.

    exposes_phi: whether the outputs hold the solved phis. smallest_batch, largest_batch: the N that it takes; None is
    any. Several threads may call an engine at once. Raises EngineError when the images have another shape or dtype.
    """

    name: str
    exposes_phi: bool
    smallest_batch: int
    largest_batch: int | None

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]: ...

    def describe(self) -> EngineDetails:
        """What this engine is: runtime, version, device, and facts of its own."""
        ...


def check_image(image: NDArray[Any], size: int) -> None:  # of any dtype, which is what is checked
    """Raise EngineError unless `image` is (N, 3, size, size) float32 with N >= 1."""
    if image.dtype != "float32" or image.ndim != 4 or image.shape[1:] != (3, size, size) or len(image) == 0:
        raise EngineError(
            f"Expected images as float32 of shape (N, 3, {size}, {size}) with N >= 1, "
            f"found {image.dtype} of shape {image.shape}."
        )
