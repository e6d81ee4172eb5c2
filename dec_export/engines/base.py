"""The protocol of engines, which run a model, with their details and their run options.

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
    """The facts that an engine reports about itself. Engines add facts in subclasses.

    runtime, version: the library that runs the model. device: "cpu", "cuda", or the GPU's name; it is the device that
    actually runs the model.
    """

    runtime: str
    version: str
    device: str

    def as_dict(self) -> dict[str, Any]:  # The values are JSON.
        """Return the facts as JSON values, in the order of their declaration."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True)
class RunOptions:
    """The options with which an engine runs.

    threads: the number of CPU threads of one run, from 1 to 1024; None leaves the choice to the runtime. cpu_fallback:
    whether an engine may run on the CPU when its GPU does not start. allow_host_code: whether a version-compatible
    TensorRT engine may run the library that it contains. Raises EngineError for another number of threads.
    """

    threads: int | None = None
    cpu_fallback: bool = False
    allow_host_code: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise EngineError(f"threads must be from 1 to {MAX_THREADS}, found {self.threads}.")


@dataclass(frozen=True)
class Shown:
    """The tensors that an engine returns in addition to the model's outputs, if it can.

    phi: whether it returns the solved phis. inner: whether it returns all tensors that `dec_export.names` names: phis,
    the solver's iterates, and features.
    """

    phi: bool = False
    inner: bool = False


DEFAULT_OPTIONS = RunOptions()


class Engine(Protocol):
    """An engine runs a model: images (N, 3, H, W) float32 -> outputs by name, each (N, ...) float32.

    exposes_phi: whether the outputs hold the solved phis. smallest_batch, largest_batch: the limits of N, where None
    means no limit. Several threads may call an engine at once. Raises EngineError when the images have another shape
    or dtype.
    """

    name: str
    exposes_phi: bool
    smallest_batch: int
    largest_batch: int | None

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]: ...

    def describe(self) -> EngineDetails:
        """Return the runtime, its version, the device, and the facts that only this engine has."""
        ...


def check_image(image: NDArray[Any], size: int) -> None:  # The dtype is checked here.
    """Raise EngineError unless `image` is (N, 3, size, size) float32 with N >= 1."""
    if image.dtype != "float32" or image.ndim != 4 or image.shape[1:] != (3, size, size) or len(image) == 0:
        raise EngineError(
            f"Expected images as float32 of shape (N, 3, {size}, {size}) with N >= 1, "
            f"found {image.dtype} of shape {image.shape}."
        )
