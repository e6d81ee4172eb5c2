"""Run one layer's solve node by node: the `dec` operators with a given function, and the other nodes with PyTorch.

This tests the kernels without TensorRT: they are interpreted on a CPU, or launched on a GPU as an engine launches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any  # attributes of ONNX nodes have values of every type

import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from torch import Tensor

from dec_export.errors import ExportError
from dec_export.formats import Format
from dec_export.onnx_export.operators import DOMAIN, Operator, check_tensors, read_config

# The function takes an operator and its inputs in order, and returns its outputs in order.
Launch = Callable[[Operator, Sequence[Tensor]], Sequence[Tensor]]


def run_solve(function: onnx.FunctionProto, inputs: Mapping[str, Tensor], launch: Launch) -> Tensor:
    """Compute phi (B, 2, R, R-1) with an unrolled Solve function, whose inputs are `image` and the layer's weights.

    Raises ExportError, which names the node, for tensors that do not fit an operator, and for nodes that no solve has.
    """
    values, device = dict(inputs), inputs["image"].device
    for node in function.node:
        given = [values[name] for name in node.input]
        results = _run_operator(node, given, launch) if node.domain == DOMAIN else [_run_standard(node, given, device)]
        values |= dict(zip(node.output, results, strict=True))
    return values[function.output[0]]


def empty_outputs(operator: Operator, batch: int, device: torch.device) -> list[Tensor]:
    """Return uninitialised tensors for an operator's outputs, with the right shapes and dtypes."""
    return [torch.empty(spec.sizes(batch), dtype=spec.format.torch, device=device) for spec in operator.outputs()]


def _run_operator(node: onnx.NodeProto, given: Sequence[Tensor], launch: Launch) -> Sequence[Tensor]:
    operator = read_config(node.op_type, _attributes(node)["config"].decode())
    facts = [(str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for tensor in given]
    check_tensors(operator, facts, operator.inputs())
    return launch(operator, given)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _run_standard(node: onnx.NodeProto, given: Sequence[Tensor], device: torch.device) -> Tensor:
    if node.op_type == "ConstantOfShape":
        return _constant_of_shape(given[0], _attributes(node), device)
    if node.op_type not in _STANDARD:
        raise ExportError(f"Node '{node.name}': a solve has no {node.op_type}.")
    return _STANDARD[node.op_type](given, _attributes(node))


def _constant(_given: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    (value,) = attributes.values()
    # Shapes are always on the CPU, even when the solve runs on a GPU.
    return torch.tensor(value, dtype=torch.int64)


def _constant_of_shape(shape: Tensor, attributes: Mapping[str, Any], device: torch.device) -> Tensor:
    value = onnx.numpy_helper.to_array(attributes["value"]).item()
    return torch.full(shape.tolist(), value, dtype=torch.float32, device=device)


def _cast(given: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    format_ = Format.of_onnx(attributes["to"])
    if format_ is None:
        raise ExportError(
            f"Expected a solve to cast only to number formats, found ONNX's element type {attributes['to']}."
        )
    return given[0].to(format_.torch)


_STANDARD: dict[str, Callable[[Sequence[Tensor], Mapping[str, Any]], Tensor]] = {
    "Cast": _cast,
    "Concat": lambda given, attributes: torch.cat(list(given), dim=attributes["axis"]),
    "Constant": _constant,
    "Expand": lambda given, _: given[0].expand(given[1].tolist()).contiguous(),
    "Pad": lambda given, _: F.pad(given[0], given[1].tolist()[2:4] * 2, mode="reflect"),
    "Shape": lambda given, attributes: torch.tensor(given[0].shape[attributes["start"] : attributes["end"]]),
    "Unsqueeze": lambda given, _: given[0].unsqueeze(int(given[1])),
}
