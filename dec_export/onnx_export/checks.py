"""What must hold of every ONNX model that is written, checked on the model itself."""

from __future__ import annotations

import onnx

from dec_export.errors import ExportError

# Control flow has no place in an unrolled solver, and TensorRT has no determinant.
_FORBIDDEN_OPERATORS = ("Loop", "If", "Scan", "Det")


def check_model(proto: onnx.ModelProto) -> None:
    """Raise ExportError unless the model is valid, portable, and declares a free batch."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported model is not valid ONNX: {error}") from error
    _check_domains(proto)
    _check_operators(proto)
    _check_batch(proto)


def _check_domains(proto: onnx.ModelProto) -> None:
    foreign = sorted({opset.domain for opset in proto.opset_import} - {"", "ai.onnx", "dec"})
    if foreign:
        raise ExportError(
            f"The exported model needs operators of {', '.join(foreign)}: only standard ONNX is portable."
        )


def _check_operators(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        if node.op_type in _FORBIDDEN_OPERATORS:
            raise ExportError(f"The unrolled model holds a {node.op_type} ('{node.name}'), which it must not.")
        if any(attribute.name == "antialias" and attribute.i for attribute in node.attribute):
            raise ExportError(f"The node '{node.name}' is an antialiased Resize, which TensorRT does not have.")


def _check_batch(proto: onnx.ModelProto) -> None:
    """The first dimension of every input and output must be the same free symbol, all others fixed numbers."""
    symbols = set()
    for value in [*proto.graph.input, *proto.graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        symbols.add(dimensions[0].dim_param)
        if not all(dimension.HasField("dim_value") for dimension in dimensions[1:]):
            raise ExportError(f"'{value.name}' has a free dimension beside its batch.")
    if len(symbols) != 1 or "" in symbols:
        raise ExportError(
            "The exported model's batch was specialised to a number: its inputs and outputs must share it."
        )
