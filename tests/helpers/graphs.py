"""ONNX models of one node."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def linear_model(
    shape_in: list[int | str],
    shape_out: list[int | str],
    node: onnx.NodeProto | None = None,
    domain: str = "",
    initializers: list[TensorProto] | None = None,
) -> onnx.ModelProto:
    node = node or helper.make_node("Relu", ["image"], ["logits"], name="node")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape_out)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
