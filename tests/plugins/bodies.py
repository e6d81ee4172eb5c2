"""The bodies of the `dec` operators, evaluated in float64, with which the kernels are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dec_export.onnx_export.bodies import OPSET, function_of
from dec_export.onnx_export.operators import DOMAIN, Operator


class GridSample(OpRun):  # type: ignore[misc]
    """ONNX's own evaluator knows the mode names of a later opset only."""

    op_domain = ""

    def _run(self, x: Any, grid: Any, mode: str, padding_mode: str, align_corners: int) -> tuple[Any]:
        tensors = torch.tensor(x), torch.tensor(grid)
        sampled = F.grid_sample(*tensors, mode=mode, padding_mode=padding_mode, align_corners=bool(align_corners))
        return (sampled.numpy(),)


class AveragePool(OpRun):  # type: ignore[misc]
    """ONNX's own evaluator divides a partial window's sum by the whole window's size; runtimes and PyTorch do not."""

    op_domain = ""

    def _run(self, x: Any, kernel_shape: Any, strides: Any, ceil_mode: int, **_rest: Any) -> tuple[Any]:
        pooled = F.avg_pool2d(torch.tensor(x), tuple(kernel_shape), tuple(strides), ceil_mode=bool(ceil_mode))
        return (pooled.numpy(),)


def model_of(operator: Operator, element_type: int | None = None) -> onnx.ModelProto:
    """Return a model of one node and its function; `element_type` replaces that of every input and output."""

    def values(specs: Any) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                spec.name, element_type or spec.format.onnx, ["batch" if n is None else n for n in spec.shape]
            )
            for spec in specs
        ]

    inputs, outputs = values(operator.inputs()), values(operator.outputs())
    node = operator.node([value.name for value in inputs], [value.name for value in outputs])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=imports,
        functions=[function_of(operator)],
        ir_version=10,
    )


def evaluate(operator: Operator, inputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
    """Evaluate the body in float64; its roundings to float16 remain."""
    return evaluate_model(model_of(operator, TensorProto.DOUBLE), inputs)


def evaluate_model(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
    """Evaluate a model with float64 inputs, whose functions are inlined and whose float32 tensors are float64."""
    model = onnx.inliner.inline_local_functions(model)
    _widen(model.graph)
    evaluator = ReferenceEvaluator(model, new_ops=[GridSample, AveragePool])
    wide = {name: value.astype(np.float64) for name, value in inputs.items()}
    return [np.asarray(value, dtype=np.float64) for value in evaluator.run(None, wide)]


def _widen(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _widen(attribute.g)
                continue
            if attribute.name == "value_float":
                wide = numpy_helper.from_array(np.array(attribute.f, dtype=np.float64))
            elif attribute.name == "value_floats":
                wide = numpy_helper.from_array(np.array(attribute.floats, dtype=np.float64))
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                wide = numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64))
                attribute.t.CopyFrom(wide)
                continue
            else:
                if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
                continue
            attribute.CopyFrom(helper.make_attribute("value", wide))
