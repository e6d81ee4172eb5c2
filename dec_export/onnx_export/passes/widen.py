"""The rewriting of a bfloat16 graph for runtimes that have no bfloat16 kernels.

Every bfloat16 value is stored in float32, which represents it exactly, and every operator's result is rounded to
bfloat16 again. Hardware that multiplies in bfloat16 and adds in float32 computes the same.
"""

from __future__ import annotations

from typing import ClassVar

from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from dec_export.formats import Format
from dec_export.onnx_export.passes.base import Pass

_NARROW, _WIDE = Format.BF16.onnx, Format.FP32.onnx
# These operators return values of their inputs, which are rounded already.
_MOVES = (
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "Reshape", "Slice"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)


def has_bfloat16(proto: ModelProto) -> bool:
    """Return whether any tensor of the graph is bfloat16."""
    graph = proto.graph
    values = (v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info])
    return _NARROW in values or any(t.data_type == _NARROW for t in graph.initializer)


class WidenBfloat16(Pass):
    """A rewriting that stores bfloat16 tensors in float32 and rounds to bfloat16 where the model does."""

    name: ClassVar[str] = "widen bfloat16"
    requires: ClassVar[str] = "The graph declares the type of every tensor, and has no bfloat16 constant nodes."
    ensures: ClassVar[str] = "No tensor is bfloat16, but for those between the two casts that round a value."

    def apply(self, proto: ModelProto) -> ModelProto:
        wide = ModelProto()
        wide.CopyFrom(proto)
        graph = wide.graph
        narrow = {v.name for v in [*graph.input, *graph.output, *graph.value_info] if _widen_value(v)}
        for tensor in graph.initializer:
            if tensor.data_type == _NARROW:
                values = numpy_helper.to_array(tensor).astype(Format.FP32.numpy)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        nodes = [widened for node in proto.graph.node for widened in _widen_node(node, narrow)]
        del graph.node[:]
        graph.node.extend(nodes)
        return wide


def widen_bfloat16(proto: ModelProto) -> ModelProto:
    """Return the model after the pass `WidenBfloat16`."""
    return WidenBfloat16().apply(proto)


def _widen_value(value: ValueInfoProto) -> bool:
    if value.type.tensor_type.elem_type != _NARROW:
        return False
    value.type.tensor_type.elem_type = _WIDE
    return True


def _widen_node(node: NodeProto, narrow: set[str]) -> list[NodeProto]:
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Cast":
        for attribute in copy.attribute:
            if attribute.name == "to" and attribute.i == _NARROW:
                attribute.i = _WIDE
    rounded = [name for name in node.output if name in narrow and node.op_type not in _MOVES]
    after = []
    for i, name in enumerate(copy.output):
        if name in rounded:
            copy.output[i] = f"{name}__unrounded"
            after.append(helper.make_node("Cast", [f"{name}__unrounded"], [f"{name}__narrow"], to=_NARROW))
            after.append(helper.make_node("Cast", [f"{name}__narrow"], [name], to=_WIDE))
    return [copy, *after]
