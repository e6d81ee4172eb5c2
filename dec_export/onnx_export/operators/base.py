"""The base class of the operators of domain `dec`, and the types of their fields."""

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

# The attributes of a node by name: numbers and lists of numbers. They are passed to `onnx.helper.make_node` among
# arguments of narrower types, so their values are `Any`.
Attributes = dict[str, Any]


def _storage_format(value: object) -> Format:
    """Return a format of the solver, given as a format or as its label; raise ValueError for anything else."""
    found = next((name for name in SOLVER_FORMATS if value in (name, name.label)), None)
    if found is None:
        raise ValueError(f"expected {' or '.join(name.label for name in SOLVER_FORMATS)}, found {value!r}")
    return found


Count = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
# A format, which a node's attributes hold as a label such as "float32".
StorageFormat = Annotated[Format, BeforeValidator(_storage_format), PlainSerializer(lambda name: name.label)]


class Operator(BaseModel, ABC):
    """A node of domain `dec`.

    name: the name of the node, which is unique in its solve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    OP_TYPE: ClassVar[str]

    name: Annotated[str, Field(min_length=1, max_length=256)]

    @property
    def op_type(self) -> str:
        """The name of the node's operator, by which its body and its plugin are found."""
        return self.OP_TYPE

    @property
    def storage(self) -> Format:
        """The format in which the node's maps are stored; statistics and phi are always in float32."""
        return Format.FP32

    @classmethod
    def tensor_names(cls) -> tuple[list[str], list[str]]:
        """Return the names of the inputs and of the outputs, which are the same for every node of this kind."""
        fields: dict[str, Any] = dict.fromkeys(cls.model_fields, 4)  # `model_construct` takes fields of any type
        some = cls.model_construct(**fields | {"name": "any", "dtype": Format.FP32})
        return [spec.name for spec in some.inputs()], [spec.name for spec in some.outputs()]

    @abstractmethod
    def inputs(self) -> list[TensorSpec]:
        """Return the node's inputs, in order."""

    @abstractmethod
    def outputs(self) -> list[TensorSpec]:
        """Return the node's outputs, in order."""

    def body_attributes(self) -> Attributes:
        """Return the attributes that the function's body reads."""
        return {}

    def config(self) -> str:
        """Return the fields as JSON on one line."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), sort_keys=True)

    def node(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
        """Return the ONNX node.

        TensorRT runs a plugin for it if one of its name is registered, and the function's body otherwise.
        """
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
