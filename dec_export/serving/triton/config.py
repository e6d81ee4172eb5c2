"""The file `config.pbtxt` of Triton Inference Server, as validated models that are written as text protobuf.

The fields have the names and meanings of the server's `model_config.proto`. Only fields that are set are written,
because a server refuses a file with a field that it does not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any  # fields of messages have types of every kind

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dec_export.errors import ServingError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
Dimensions = Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=4096)]
Version = tuple[int, int]

# The value is the first release of the server that knows the field; all other fields are older than 2.9.
SINCE: dict[tuple[str, str], Version] = {
    ("Warmup", "count"): (2, 24),
    ("Ensemble", "max_inflight_requests"): (2, 64),
}
# This is the oldest release on which these files have run.
TESTED_SERVER: Version = (2, 51)


def parse_version(text: str) -> Version:
    """Return the numbers of a server's version such as 2.51 or 2.51.0.

    Raises:
        ServingError: if the text is not such a version.
    """
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?", text)
    if found is None:
        raise ServingError(f"--min-server expects a version of Triton Inference Server as in 2.51, found '{text}'.")
    return int(found[1]), int(found[2])


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    # The values are Any, because fields have many types, which `_field` distinguishes.
    def fields(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields that are set, in order."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None and value != () and value != {}:
                yield name, value


class DataType(Enum):
    """The type of a tensor in requests and answers."""

    TYPE_FP32 = "TYPE_FP32"
    TYPE_INT32 = "TYPE_INT32"
    TYPE_UINT8 = "TYPE_UINT8"
    TYPE_STRING = "TYPE_STRING"


class Kind(Enum):
    """The kind of device on which instances run."""

    KIND_CPU = "KIND_CPU"
    KIND_GPU = "KIND_GPU"


class Tensor(_Message):
    """A tensor of one model. dims: its shape without the batch."""

    name: Name
    data_type: DataType
    dims: Dimensions


class Input(Tensor):
    """An input of a model."""


class Output(Tensor):
    """An output of a model. label_filename: the file beside config.pbtxt that names one class on each line."""

    label_filename: str | None = None


class Latest(_Message):
    num_versions: Count


class VersionPolicy(_Message):
    latest: Latest


class InstanceGroup(_Message):
    """The number of instances, and their device. profile: the names of a TensorRT engine's optimisation profiles."""

    kind: Kind
    count: Count
    profile: tuple[str, ...] = ()


class QueuePolicy(_Message):
    """The limit from which on requests are refused. max_queue_size: the number of requests that may wait."""

    max_queue_size: Annotated[int, Field(ge=1)]


class DynamicBatching(_Message):
    preferred_batch_size: tuple[Count, ...] = ()
    max_queue_delay_microseconds: Annotated[int, Field(ge=1)] | None = None
    default_queue_policy: QueuePolicy | None = None


class WarmupInput(_Message):
    data_type: DataType
    dims: Dimensions
    input_data_file: str


class Warmup(_Message):
    """A batch that the server runs before it is ready.

    inputs: the input tensors by name. batch_size: the number of requests with one image in the batch. count: the number
    of runs.
    """

    name: Name
    batch_size: Count
    inputs: dict[Name, WarmupInput]
    count: Count | None = None


class GraphShape(_Message):
    dim: Dimensions


class GraphSpec(_Message):
    """A batch size for which a CUDA graph is recorded. input: the input shapes by name, without the batch."""

    batch_size: Count
    input: dict[Name, GraphShape] = {}


class Cuda(_Message):
    graphs: bool
    graph_spec: tuple[GraphSpec, ...] = ()
    output_copy_stream: bool | None = None


class Accelerator(_Message):
    """An execution provider of ONNX Runtime, with its options."""

    name: Name
    parameters: dict[Name, str] = {}


class ExecutionAccelerators(_Message):
    gpu_execution_accelerator: tuple[Accelerator, ...]


class Optimization(_Message):
    cuda: Cuda | None = None
    execution_accelerators: ExecutionAccelerators | None = None


class Step(_Message):
    """One model of an ensemble. The maps assign tensors of the ensemble to tensors of the model."""

    model_name: Name
    model_version: int = -1
    input_map: dict[Name, Name]
    output_map: dict[Name, Name]


class Ensemble(_Message):
    step: Annotated[tuple[Step, ...], Field(min_length=1)]
    max_inflight_requests: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class Parameter(_Message):
    string_value: str


class Interface(_Message):
    """The interface on which clients and ensembles depend: a model's tensors, and the backend that runs it."""

    name: Name
    backend: Name | None
    platform: Name | None
    input: tuple[Input, ...]
    output: tuple[Output, ...]


class ModelConfig(_Message):
    """The configuration of one model. An ensemble has `ensemble_scheduling`, and no backend or instances."""

    name: Name
    backend: Name | None = None
    platform: Name | None = None
    max_batch_size: Annotated[int, Field(ge=0, le=4096)]
    input: Annotated[tuple[Input, ...], Field(min_length=1)]
    output: Annotated[tuple[Output, ...], Field(min_length=1)]
    version_policy: VersionPolicy = VersionPolicy(latest=Latest(num_versions=1))
    instance_group: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    optimization: Optimization | None = None
    ensemble_scheduling: Ensemble | None = None
    model_warmup: tuple[Warmup, ...] = ()
    parameters: dict[Name, Parameter] = {}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        ensemble = self.ensemble_scheduling is not None
        if ensemble != (self.platform == "ensemble") or ensemble == (self.backend is not None):
            raise ValueError("a model has a backend, or is an ensemble with platform 'ensemble' and its steps")
        if ensemble == bool(self.instance_group):
            raise ValueError("a model has an instance_group, an ensemble has none")
        names = [t.name for t in self.input] + [t.name for t in self.output]
        if not ensemble and len(set(names)) < len(names):
            raise ValueError(f"tensors must have names of their own, found {', '.join(names)}")
        too_large = [w.batch_size for w in self.model_warmup if w.batch_size > max(1, self.max_batch_size)]
        if too_large:
            raise ValueError(f"a warmup of {too_large[0]} is larger than max_batch_size {self.max_batch_size}")
        return self

    def interface(self) -> Interface:
        """Return the interface on which clients and ensembles depend."""
        return Interface(
            name=self.name, backend=self.backend, platform=self.platform, input=self.input, output=self.output
        )

    def text(self, min_server: Version = TESTED_SERVER) -> str:
        """Return the configuration as text protobuf, without the fields that `min_server` does not know."""
        return "".join(f"{line}\n" for line in _lines(self, min_server))


def _lines(message: _Message, server: Version, indent: str = "") -> Iterator[str]:
    for name, value in message.fields():
        if SINCE.get((type(message).__name__, name), server) <= server:
            for item in _items(value):
                yield from _field(name, item, server, indent)


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.items())
    return list(value) if isinstance(value, tuple) else [value]


def _field(name: str, value: Any, server: Version, indent: str) -> Iterator[str]:
    if isinstance(value, _Message):
        yield f"{indent}{name} {{"
        yield from _lines(value, server, f"{indent}  ")
        yield f"{indent}}}"
    elif isinstance(value, tuple):  # This is an entry of a map.
        yield f"{indent}{name} {{"
        yield from _field("key", value[0], server, f"{indent}  ")
        yield from _field("value", value[1], server, f"{indent}  ")
        yield f"{indent}}}"
    else:
        yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    # Protobuf has JSON's escapes for ASCII text; other characters are written as UTF-8 bytes.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
