"""How a bundle is to be served: what the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from dec_export.errors import ServingError
from dec_export.serving.triton.config import TESTED_SERVER, Kind, Version

# Classes in the answer of a model that classifies, if it has as many.
TOP_K: Final = 5
MAX_BATCH: Final = 4096
AUTO: Final = "auto"


class Device(str, Enum):
    """Where the engine of a model runs."""

    GPU = "gpu"
    CPU = "cpu"

    @property
    def kind(self) -> Kind:
        """The server's name for it."""
        return {Device.GPU: Kind.KIND_GPU, Device.CPU: Kind.KIND_CPU}[self]


@dataclass(frozen=True)
class ServingOptions:
    """Options of `dec-export triton`.

    Attributes:
        backend: the server's backend that runs the engine. "tensorrt" runs the bundle's plan and "onnxruntime" its ONNX
            file; "python" runs either, by a model.py of its own, which checks the images that it is given.
        name: the models' name; None is the recipe's.
        instances: how many instances of each model the server starts.
        max_batch: the largest batch; None is 8, or the largest that the plan was built for.
        device: "gpu" or "cpu", where the engine runs.
        labels: a file with the name of one class on each line; None numbers the classes.
        ensemble: "auto", or the ensemble that the model's task has ("classify", "segment").
        min_server: the oldest server that must be able to read the files.
        tensorrt_version: of the server; None is the version that is installed here.
        compute_capability: of the server's GPU, as in 9.0; None is that of the GPU here.
    """

    backend: str = "python"
    name: str | None = None
    instances: int = 1
    max_batch: int | None = None
    device: str = Device.GPU.value
    labels: str | Path | None = None
    ensemble: str = AUTO
    min_server: Version = TESTED_SERVER
    tensorrt_version: str | None = None
    compute_capability: str | None = None

    def __post_init__(self) -> None:
        if self.max_batch is not None and not 1 <= self.max_batch <= MAX_BATCH:
            raise ServingError(f"--max-batch must be from 1 to {MAX_BATCH}, found {self.max_batch}.")


def device_named(name: str) -> Device:
    """The device of that name.

    Raises:
        ServingError: if there is no such device.
    """
    try:
        return Device(name)
    except ValueError as error:
        raise ServingError(f"Unknown device '{name}', expected gpu or cpu.") from error
