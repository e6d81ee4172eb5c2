"""The reading of operators from the nodes of an ONNX graph, and the check of a node's tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx
from pydantic import ValidationError

from dec_export.errors import ExportError
from dec_export.onnx_export.operators.base import DOMAIN, Operator
from dec_export.onnx_export.operators.kinds import kind_of
from dec_export.onnx_export.operators.tensors import TensorSpec, describe

_MAX_CONFIG_CHARS = 4096


def read_config(op_type: str, config: str) -> Operator:
    """Return the operator that a node's `config` describes.

    Raises ExportError when the text does not describe an operator of the kind `op_type`. The error names the node if
    its name can be read.
    """
    text = config.rstrip("\0")
    name, kind = _name_in(text), kind_of(op_type)
    if kind is None:
        raise ExportError(f"Node '{name}': '{op_type}' is no operator of this version of dec-export.")
    try:
        operator = kind.model_validate_json(text[: _MAX_CONFIG_CHARS + 1])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        raise ExportError(
            f"Node '{name}' ({op_type}): its attribute 'config' is wrong at '{where}' ({first['msg']}): "
            "build the ONNX file again."
        ) from error
    if operator.op_type != op_type:
        raise ExportError(
            f"Node '{name}' ({op_type}): its attribute 'config' is that of another operator, {operator.op_type}: "
            "build the ONNX file again."
        )
    return operator


def operators_in(proto: onnx.ModelProto) -> list[Operator]:
    """Return the operators in a model's functions and graph; raise ExportError for one that cannot be read."""
    found = []
    for node in (node for body in (*proto.functions, proto.graph) for node in body.node):
        if node.domain == DOMAIN and kind_of(node.op_type):
            configs = [attribute.s for attribute in node.attribute if attribute.name == "config"]
            found.append(read_config(node.op_type, b"".join(configs).decode("utf-8", "replace")))
    return found


def _name_in(text: str) -> str:
    try:
        return str(json.loads(text[:_MAX_CONFIG_CHARS])["name"])
    except (ValueError, KeyError, TypeError):
        return "without a name"


def check_tensors(
    operator: Operator, tensors: Sequence[tuple[str, Sequence[int | None]]], specs: Sequence[TensorSpec]
) -> None:
    """Compare the tensors of an operator's node with the specifications of its inputs.

    tensors: for each tensor, the label of its format, as "float32", and its shape, with None for a size that is not
    known. Raises ExportError, which names the node, when their number, a format or a shape is wrong.
    """
    where = f"Node '{operator.name}' ({operator.op_type})"
    if len(tensors) != len(specs):
        raise ExportError(f"{where}: expected {len(specs)} tensors, found {len(tensors)}: build the ONNX file again.")
    for (label, shape), spec in zip(tensors, specs, strict=True):
        if not spec.accepts(label, shape):
            raise ExportError(
                f"{where}: '{spec.name}' must be {spec}, found {describe(label, shape)}: build the ONNX file again."
            )
