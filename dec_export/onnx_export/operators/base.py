"""What all operators of domain `dec` have in common, and the types of their fields."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import onnx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from dec_export.formats import SOLVER_FORMATS, Format
from dec_export.onnx_export.operators.tensors import TensorSpec

DOMAIN = "dec"

# Attributes of a node, by name: numbers and lists of numbers. `onnx.helper.make_node` types its own arguments, among
# which they are passed, more narrowly.
Attributes = dict[str, Any]


def _storage_format(value: object) -> Format:
    """A format of the solver, from itself or from its label; ValueError for anything else."""
    found = next((name for name in SOLVER_FORMATS if value in (name, name.label)), None)
    if found is None:
        raise ValueError(f"expected {' or '.join(name.label for name in SOLVER_FORMATS)}, found {value!r}")
    return found


Count = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
# In a node's attributes it is a label such as "float32".
StorageFormat = Annotated[Format, BeforeValidator(_storage_format), PlainSerializer(lambda name: name.label)]


class Operator(BaseModel, ABC):
    """A node of domain `dec`. name: the node's, unique in its solve."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    OP_TYPE: ClassVar[str]

    name: Annotated[str, Field(min_length=1, max_length=256)]

    @property
    def op_type(self) -> str:
        """The node's operator, by which its body and its plugin are found."""
        return self.OP_TYPE

    @property
    def storage(self) -> Format:
        """The format in which the node's maps are stored; statistics and phi are always in float32."""
        return Format.FP32

    @classmethod
    def tensor_names(cls) -> tuple[list[str], list[str]]:
        """The names of the inputs and of the outputs, which are the same for every node of this kind."""
        fields: dict[str, Any] = dict.fromkeys(cls.model_fields, 4)
        some = cls.model_construct(**fields | {"name": "any", "dtype": Format.FP32})
        return [spec.name for spec in some.inputs()], [spec.name for spec in some.outputs()]

    @abstractmethod
    def inputs(self) -> list[TensorSpec]:
        """The node's inputs, in order."""

    @abstractmethod
    def outputs(self) -> list[TensorSpec]:
        """The node's outputs, in order."""

    def body_attributes(self) -> Attributes:
        """The attributes that the function's body reads."""
        return {}

    def config(self) -> str:
        """The fields as JSON, on one line."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), sort_keys=True)

    def node(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
        """The ONNX node. TensorRT takes it for a plugin's when one of that name is registered, else for its body."""
        return onnx.helper.make_node(
            self.op_type,
            inputs,
            outputs,
            name=self.name,
            domain=DOMAIN,
            plugin_namespace=DOMAIN,
            plugin_version="1",
            aot=1,
            config=self.config(),
            **self.body_attributes(),
        )
