"""The floating-point operations of an ONNX graph, and the bytes that it moves without fusion."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx

from dec_export.bench.report import GraphCost
from dec_export.onnx_export.tracing import INPUT


def graph_cost(proto: onnx.ModelProto, batch: int) -> GraphCost:
    """Return the cost of one run with `batch` images."""
    shapes = _shapes(proto, batch)
    flops = moved = 0.0
    for node in proto.graph.node:
        names = [name for name in (*node.input, *node.output) if name in shapes]
        moved += sum(prod(shapes[name][0]) * shapes[name][1] for name in names)
        if node.op_type in _FLOPS and all(name in shapes for name in (*node.input[:2], node.output[0])):
            weight, output = shapes[node.input[1]][0], shapes[node.output[0]][0]
            flops += 2 * prod(output) * _FLOPS[node.op_type](shapes[node.input[0]][0], weight)
    return GraphCost(flops=flops, bytes=moved)


# Each function computes the multiplications for one element of the output from the shapes of the two operands.
_FLOPS: dict[str, Callable[[list[int], list[int]], int]] = {
    "Conv": lambda _, weight: prod(weight[1:]),
    "MatMul": lambda first, _: first[-1],
    "Gemm": lambda first, _: first[-1],
}


def _shapes(proto: onnx.ModelProto, batch: int) -> dict[str, tuple[list[int], int]]:
    """Return the shape, and the bytes of one element, of every tensor whose shape is known."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    graph = fixed.graph
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    assert graph.input[0].name == INPUT
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {t.name: (list(t.dims), _item_bytes(t.data_type)) for t in inferred.initializer}
    for value in [*inferred.input, *inferred.output, *inferred.value_info]:
        tensor = value.type.tensor_type
        if all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            shapes[value.name] = ([d.dim_value for d in tensor.shape.dim], _item_bytes(tensor.elem_type))
    return shapes


def _item_bytes(element_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize)
