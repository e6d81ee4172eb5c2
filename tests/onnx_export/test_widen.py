"""A bfloat16 graph that was rewritten in float32 computes the same function, and rounds where the graph rounds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dec_export.bundle.store import Bundle
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.formats import Format
from dec_export.forms import Forms
from dec_export.lowering.model import lower
from dec_export.onnx_export.passes.widen import has_bfloat16, widen_bfloat16
from dec_export.onnx_export.tracing import export
from dec_export.parity.metrics import compare
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference, in_precision
from tests.conftest import photographs


def product(weight: np.ndarray) -> onnx.ModelProto:
    """Return the graph image (n, 3, 2, 2) -> flat bfloat16 (n, 12) @ weight -> Neg -> float32."""
    raw = torch.from_numpy(weight).bfloat16().view(torch.int16).numpy().tobytes()
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, list(weight.shape), raw, raw=True)
    shape = numpy_helper.from_array(np.array([-1, 12]), "shape")
    nodes = [
        helper.make_node("Cast", ["image"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Reshape", ["narrow", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Neg", ["product"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["logits"], to=TensorProto.FLOAT),
    ]
    inner = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, None)
        for name in ("narrow", "flat", "product", "negative")
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 2, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [image], [logits], [tensor, shape], value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_the_result_is_torchs_own_in_bfloat16(seed: int, scale: float) -> None:
    """Sums are computed in float32 in any order and rounded once, so results differ by at most one step of bfloat16."""
    generator = np.random.default_rng(seed)
    image = (scale * generator.standard_normal((2, 3, 2, 2))).astype(np.float32)
    weight = generator.standard_normal((12, 4)).astype(np.float32)
    found = torch.from_numpy(OnnxRuntimeEngine(product(weight), bfloat16=True)(image)["logits"])
    expected = -(torch.from_numpy(image).bfloat16().reshape(2, 12) @ torch.from_numpy(weight).bfloat16())
    assert torch.equal(found, found.bfloat16().float()), "a value that bfloat16 does not have was never rounded"
    # Where terms cancel, float32's own rounding of the sum is what can tip the last bit of bfloat16.
    cancelled = 12 * 2.0**-24 * image.reshape(2, 12).__abs__() @ np.abs(weight)
    apart = (found - expected.float()).abs()
    assert (apart <= 2 * Format.BF16.unit_roundoff * expected.float().abs() + torch.from_numpy(cancelled)).all()


def test_a_graph_without_bfloat16_is_left_as_it_is() -> None:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["image"], ["logits"])],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        )
    )
    assert not has_bfloat16(proto)
    assert widen_bfloat16(proto) == proto


@pytest.mark.parametrize(("precision", "solver"), [("fp16", "fp32"), ("bf16", "fp32"), ("fp16", "fp16")])
def test_an_exported_16_bit_model_is_as_near_to_float64_as_pytorchs(
    precision: str, solver: str, small_model: DecModel
) -> None:
    images = photographs(160, 4)
    proto = export(lower(small_model, precision, solver), Forms(expose_phi=True))
    types = {tensor.data_type for tensor in proto.graph.initializer}
    assert {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision] in types
    grids = {n.input[1] for n in proto.graph.node if n.op_type == "GridSample"}
    inner = {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    assert {inner[grid] for grid in grids} == {TensorProto.FLOAT}, "sampling grids stay in float32"
    assert {v.type.tensor_type.elem_type for v in [*proto.graph.input, *proto.graph.output]} == {TensorProto.FLOAT}

    found = OnnxRuntimeEngine(proto, bfloat16=precision == "bf16")(images)
    with torch.inference_mode():
        wide = small_model(torch.from_numpy(images))
        narrow = in_precision(small_model, precision, solver)(torch.from_numpy(images))
        truth = small_model.double()(torch.from_numpy(images).double())
    pairs = [("logits", *(o.logits.numpy() for o in (wide, truth, narrow)), precision)]
    for layer in range(len(truth.phis)):
        for axis in "xy":
            values = (getattr(o.phis[layer], axis).numpy() for o in (wide, truth, narrow))
            pairs.append((f"phi_{axis}_{layer}", *values, solver))
    for name, fp32, fp64, same, format_ in pairs:
        parity = compare(found[name], fp32, fp64, same, Format(format_).unit_roundoff)
        assert parity.ratio <= 2, (name, parity)
        if solver == "fp32" and name.startswith("phi"):
            assert parity.rel_l2_reference == parity.rel_l2_reference_fp32


@pytest.mark.parametrize("name", ["digits", "digits_segmentation"])
def test_group_norms_and_poolings_stay_in_float32_beside_bfloat16(name: str) -> None:
    """ONNX has neither in bfloat16 at the export's opset, and the convolutional stem of the digits model has both."""
    recipe = Recipe.named(name)
    proto = export(lower(create_reference(recipe), "bf16"))
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    for kind in ("InstanceNormalization", "MaxPool"):
        nodes = [node for node in proto.graph.node if node.op_type == kind]
        assert nodes
        assert {types[node.output[0]] for node in nodes} == {TensorProto.FLOAT}
    images = photographs(recipe.backbone.image_size, 2)
    logits = OnnxRuntimeEngine(proto, bfloat16=True)(images)["logits"]
    assert logits.shape[:2] == (2, recipe.backbone.num_classes)


def test_a_float32_export_has_no_casts(small_bundle: Bundle) -> None:
    assert not [node for node in onnx.load(small_bundle.onnx_path).graph.node if node.op_type == "Cast"]
