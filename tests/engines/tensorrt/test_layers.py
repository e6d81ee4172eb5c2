"""The contents of engines are read back in both forms in which TensorRT describes them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dec_export.engines.tensorrt.layers import (
    Binding,
    EngineContents,
    EngineTensor,
    Layer,
    check_bindings,
    check_precision,
    contents_from_engine,
    contents_from_log,
    is_contents,
    summary,
)
from dec_export.errors import EngineError, PrecisionError

LOG = """Layers:
Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: {}
Name: product, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,4], Strides: [4,1], StrideOrder: [1,0], \
Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [4,5], \
Strides: [5,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Outputs: [ \
{ Name: logits, Dimensions: [-1,5], Strides: [5,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major \
linear format }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: matmul][ONNX Layer: cast]

I/O Tensors:
 Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,4], Location: Device, IsShapeInferenceIO: false, \
ProfileInfo: [ { MinShape: [1,4], OptShape: [2,4], MaxShape: [8,4], Format: Row major linear FP32 format (kLINEAR) }]
 Name: logits, IOMode: Output, DataType: Float, Dimensions: [-1,5], Location: Device, IsShapeInferenceIO: false, \
ProfileInfo: [ { Format: Row major linear FP32 format (kLINEAR) }]
""".replace("{}", "")
JSON = json.dumps(
    {
        "Layers": [
            {
                "Name": "product",
                "LayerType": "gemm",
                "Inputs": [{"Name": "a", "Dimensions": [-1, 4], "Format/Datatype": "Half"}],
                "Outputs": [{"Name": "logits", "Dimensions": [-1, 5], "Format/Datatype": "Row major linear FP32"}],
                "Metadata": "[ONNX Layer: matmul]\x1e[ONNX Layer: cast]",
            }
        ],
        "Bindings": ["image", "logits"],
    }
)
IMAGE = Binding("image", True, "float32", (-1, 4), ((1, 4), (2, 4), (8, 4)))
LOGITS = Binding("logits", False, "float32", (-1, 5), None)


def graph(element_type: int) -> onnx.ModelProto:
    """Return the graph image (n, 4) -> Cast -> MatMul in `element_type` -> Cast -> logits (n, 5)."""
    weight = numpy_helper.from_array(
        numpy_helper.to_array(helper.make_tensor("w", TensorProto.FLOAT, [4, 5], [0.0] * 20)), "w"
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["a"], "narrow", to=element_type),
        helper.make_node("Cast", ["w"], ["v"], "narrow_weight", to=element_type),
        helper.make_node("MatMul", ["a", "v"], ["b"], "matmul"),
        helper.make_node("Cast", ["b"], ["logits"], "cast", to=TensorProto.FLOAT),
    ]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("image", 4), ("logits", 5))
    )
    inner = [helper.make_tensor_value_info(name, element_type, None) for name in ("a", "v", "b")]
    return helper.make_model(helper.make_graph(nodes, "g", [image], [logits], [weight], value_info=inner))


def fake_engine() -> tuple[Any, Any]:
    """Return the part of a TensorRT engine that reading its contents needs."""
    trt = SimpleNamespace(
        LayerInformationFormat=SimpleNamespace(JSON="json"), TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out")
    )
    engine = SimpleNamespace(
        num_io_tensors=2,
        create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda _: JSON),
        get_tensor_name=["image", "logits"].__getitem__,
        get_tensor_mode={"image": "in", "logits": "out"}.__getitem__,
        get_tensor_dtype=lambda _: "DataType.FLOAT",
        get_tensor_shape={"image": (-1, 4), "logits": (-1, 5)}.__getitem__,
        get_tensor_profile_shape=lambda *_: [(1, 4), (2, 4), (8, 4)],
    )
    return engine, trt


def test_the_log_and_the_inspector_tell_the_same() -> None:
    assert is_contents(LOG)
    from_log, from_engine = contents_from_log(LOG), contents_from_engine(*fake_engine())
    assert from_log.layers[1] == Layer(
        "product",
        "gemm",
        (EngineTensor("float16", (-1, 4)),),
        (EngineTensor("float16", (4, 5)),),
        (EngineTensor("float32", (-1, 5)),),
        ("matmul", "cast"),
    )
    assert from_log.bindings == from_engine.bindings == (IMAGE, LOGITS)
    assert from_log.layers[1].onnx_nodes == from_engine.layers[0].onnx_nodes
    assert from_log.layers[1].dtypes == from_engine.layers[0].dtypes == {"float16", "float32"}
    assert summary(from_log)["by_dtype"] == {"none": 1, "float16+float32": 1}


@pytest.mark.parametrize("spelling", ["BFloat16", "Bf16", "Row major linear BF16 format"])
def test_bfloat16_is_not_taken_for_float16_or_float(spelling: str) -> None:
    contents = contents_from_log(LOG.replace("Datatype: Half", f"Datatype: {spelling}"))
    assert contents.layers[1].inputs[0].dtype == "bfloat16"


def test_an_engine_that_tells_nothing_is_an_error() -> None:
    with pytest.raises(EngineError, match="lists no layers"):
        contents_from_log("Layers:\n\nI/O Tensors:\n")


def test_the_precision_that_was_built_is_counted() -> None:
    assert check_precision(contents_from_log(LOG), graph(TensorProto.FLOAT16), complete=True) == {
        "float16": {"graph": 1, "found": 1}
    }


def test_a_silently_wider_engine_is_refused() -> None:
    wide = contents_from_log(LOG.replace("Datatype: Half", "Datatype: Float"))
    with pytest.raises(EngineError, match="'matmul' in float16, but the engine computes it in float32"):
        check_precision(wide, graph(TensorProto.FLOAT16), complete=True)
    with pytest.raises(EngineError, match="in bfloat16, but"):
        check_precision(contents_from_log(LOG), graph(TensorProto.BFLOAT16), complete=True)


@pytest.mark.parametrize("complete", [True, False])
def test_an_engine_that_does_not_name_its_nodes_is_refused(complete: bool) -> None:
    nameless = contents_from_log(LOG.replace("ONNX Layer: ", ""))
    with pytest.raises(PrecisionError, match="1 matrix products in float16 in the engine's layers, found 0"):
        check_precision(nameless, graph(TensorProto.FLOAT16), complete=complete)


def test_a_product_that_is_missing_is_refused_where_all_should_be_named() -> None:
    proto = graph(TensorProto.FLOAT16)
    proto.graph.node.append(helper.make_node("MatMul", ["a", "v"], ["c"], "another"))
    contents = contents_from_log(LOG)
    assert check_precision(contents, proto, complete=False) == {"float16": {"graph": 2, "found": 1}}
    with pytest.raises(PrecisionError, match="2 matrix products in float16 in the engine's layers, found 1"):
        check_precision(contents, proto, complete=True)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ((IMAGE,), "The engine has the tensors image, expected those of the ONNX model, image, logits"),
        ((IMAGE, Binding("logits", False, "float16", (-1, 5), None)), "'logits' is float16"),
        ((IMAGE, Binding("logits", False, "float32", (-1, 6), None)), r"'logits' is float32 \(-1, 6\)"),
        ((Binding("image", True, "float32", (-1, 4), ((1, 4), (1, 4), (8, 4))), LOGITS), r"expected \(\(1, 4\)"),
    ],
)
def test_other_inputs_and_outputs_are_refused(bindings: tuple[Binding, ...], message: str) -> None:
    layers = contents_from_log(LOG).layers
    proto = graph(TensorProto.FLOAT16)
    check_bindings(EngineContents(layers, (IMAGE, LOGITS)), proto, (1, 2, 8))
    with pytest.raises(EngineError, match=message):
        check_bindings(EngineContents(layers, bindings), proto, (1, 2, 8))
