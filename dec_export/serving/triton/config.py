"""`config.pbtxt` of Triton Inference Server: validated models that write themselves as text protobuf.

Field names and meanings are those of the server's `model_config.proto`. Only what is set is written, so that a server
which does not know a newer field still loads the file: it refuses a file with one unknown field.
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

# The first release of the server that knows a field; all others are older than 2.9.
SINCE: dict[tuple[str, str], Version] = {
    ("Warmup", "count"): (2, 24),
    ("Ensemble", "max_inflight_requests"): (2, 64),
}
# The oldest release on which these files have run.
TESTED_SERVER: Version = (2, 51)


def parse_version(text: str) -> Version:
    """The numbers of a server's version such as 2.51 or 2.51.0.

    Raises:
        ServingError: if the text is not such a version.
    """
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?", text)
    if found is None:
        raise ServingError(f"--min-server expects a version of Triton Inference Server as in 2.51, found '{text}'.")
    return int(found[1]), int(found[2])


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    # Any: the fields of messages have types of their own, which `_field` tells apart.
    def fields(self) -> Iterator[tuple[str, Any]]:
        """The fields that are set, in order."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None and value != () and value != {}:
                yield name, value


class DataType(Enum):
    """The type of a tensor on the wire."""

    TYPE_FP32 = "TYPE_FP32"
    TYPE_INT32 = "TYPE_INT32"
    TYPE_UINT8 = "TYPE_UINT8"
    TYPE_STRING = "TYPE_STRING"


class Kind(Enum):
    """Where instances run."""

    KIND_CPU = "KIND_CPU"
    KIND_GPU = "KIND_GPU"


class Tensor(_Message):
    """A tensor of one model. dims: its shape, without the batch."""

    name: Name
    data_type: DataType
    dims: Dimensions


class Input(Tensor):
    """What a model takes."""


class Output(Tensor):
    """What a model gives. label_filename: the file beside config.pbtxt that names one class on each line."""

    label_filename: str | None = None


class Latest(_Message):
    num_versions: Count


class VersionPolicy(_Message):
    latest: Latest


class InstanceGroup(_Message):
    """How many instances run, and where. profile: names of a TensorRT engine's optimisation profiles."""

    kind: Kind
    count: Count
    profile: tuple[str, ...] = ()


class QueuePolicy(_Message):
    """When requests are refused. max_queue_size: how many may wait."""

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

    inputs: by name. batch_size: how many requests of one image are run together. count: how often.
    """

    name: Name
    batch_size: Count
    inputs: dict[Name, WarmupInput]
    count: Count | None = None


class GraphShape(_Message):
    dim: Dimensions


class GraphSpec(_Message):
    """A batch for which a CUDA graph is recorded. input: shapes by name, without the batch."""

    batch_size: Count
    input: dict[Name, GraphShape] = {}


class Cuda(_Message):
    graphs: bool
    graph_spec: tuple[GraphSpec, ...] = ()
    output_copy_stream: bool | None = None


class Accelerator(_Message):
    """One of ONNX Runtime's execution providers, with its options."""

    name: Name
    parameters: dict[Name, str] = {}


class ExecutionAccelerators(_Message):
    gpu_execution_accelerator: tuple[Accelerator, ...]


class Optimization(_Message):
    cuda: Cuda | None = None
    execution_accelerators: ExecutionAccelerators | None = None


class Step(_Message):
    """One model of an ensemble; maps go from its tensors to the ensemble's."""

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
    """What clients and ensembles rely on: names, types and shapes of a model's tensors, and what runs it."""

    name: Name
    backend: Name | None
    platform: Name | None
    input: tuple[Input, ...]
    output: tuple[Output, ...]


class ModelConfig(_Message):
    """One model's configuration. An ensemble has `ensemble_scheduling`, and no backend or instances."""

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
        """What clients and ensembles rely on."""
        return Interface(
            name=self.name, backend=self.backend, platform=self.platform, input=self.input, output=self.output
        )

    def text(self, min_server: Version = TESTED_SERVER) -> str:
        """The configuration as text protobuf, without the fields that `min_server` does not know."""
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
    elif isinstance(value, tuple):  # an entry of a map
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
    # JSON's escapes of ASCII text are protobuf's; anything else goes as UTF-8 bytes.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
