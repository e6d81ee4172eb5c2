"""A bfloat16 graph for runtimes that have no bfloat16 kernels.

Every bfloat16 value is held in float32, which contains all of them, and every operator's result is rounded to
bfloat16 again. That is what hardware does that multiplies in bfloat16 and adds up in float32.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

_BF16, _FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT
# They return values that they were given, which are rounded already.
_MOVES = (
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "Reshape", "Slice"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)


def has_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether any tensor of the graph is bfloat16."""
    graph = proto.graph
    values = (v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info])
    return _BF16 in values or any(t.data_type == _BF16 for t in graph.initializer)


def widen_bfloat16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in float32 that rounds to bfloat16 wherever the model does.

    The graph must declare the type of every tensor, as `export` does, and hold no bfloat16 constant nodes.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    graph = wide.graph
    narrow = {v.name for v in [*graph.input, *graph.output, *graph.value_info] if _widen_value(v)}
    for tensor in graph.initializer:
        if tensor.data_type == _BF16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = [widened for node in proto.graph.node for widened in _widen_node(node, narrow)]
    del graph.node[:]
    graph.node.extend(nodes)
    return wide


def _widen_value(value: ValueInfoProto) -> bool:
    if value.type.tensor_type.elem_type != _BF16:
        return False
    value.type.tensor_type.elem_type = _FLOAT
    return True


def _widen_node(node: NodeProto, narrow: set[str]) -> list[NodeProto]:
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Cast":
        for attribute in copy.attribute:
            if attribute.name == "to" and attribute.i == _BF16:
                attribute.i = _FLOAT
    rounded = [name for name in node.output if name in narrow and node.op_type not in _MOVES]
    after = []
    for i, name in enumerate(copy.output):
        if name in rounded:
            copy.output[i] = f"{name}__unrounded"
            after.append(helper.make_node("Cast", [f"{name}__unrounded"], [f"{name}__narrow"], to=_BF16))
            after.append(helper.make_node("Cast", [f"{name}__narrow"], [name], to=_FLOAT))
    return [copy, *after]
