"""The options with which a user serves a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from dec_export.errors import ServingError
from dec_export.serving.triton.config import TESTED_SERVER, Kind, Version

# An answer of a classifier holds this many classes, if it has as many.
TOP_K: Final = 5
MAX_BATCH: Final = 4096
AUTO: Final = "auto"


class Device(str, Enum):
    """The device on which the engine of a model runs."""

    GPU = "gpu"
    CPU = "cpu"

    @property
    def kind(self) -> Kind:
        """The server's name of the kind of device."""
        return {Device.GPU: Kind.KIND_GPU, Device.CPU: Kind.KIND_CPU}[self]


@dataclass(frozen=True)
class ServingOptions:
    """The options of `dec-export triton`.

    Attributes:
        backend: the server's backend that runs the engine. "tensorrt" runs the bundle's plan and "onnxruntime" its ONNX
            file; "python" runs either with a model.py, which also checks the images.
        name: the name of the models; None means the recipe's name.
        instances: the number of instances of each model that the server starts.
        max_batch: the largest batch; None means 8, or the largest batch for which the plan was built.
        device: the device that runs the engine, "gpu" or "cpu".
        labels: a file with the name of one class on each line; with None, the classes are numbered.
        ensemble: "auto", or the ensemble of the model's task ("classify", "segment").
        min_server: the oldest version of the server that must be able to read the files.
        tensorrt_version: the version of the server's TensorRT; None means the version that is installed here.
        compute_capability: that of the server's GPU, such as 9.0; None means that of this machine's GPU.
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
    """Return the device of that name.

    Raises:
        ServingError: if there is no such device.
    """
    try:
        return Device(name)
    except ValueError as error:
        raise ServingError(f"Unknown device '{name}', expected gpu or cpu.") from error
