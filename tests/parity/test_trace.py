"""The first place where an engine leaves the reference is the one that was broken."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dec_export.bundle import Bundle
from dec_export.engines.onnxruntime_engine import OnnxRuntimeEngine
from dec_export.images import ImageSet
from dec_export.lowering.model import lower
from dec_export.onnx_export.export import export, inner_names
from dec_export.onnx_export.names import computation_order, describe
from dec_export.parity.run import References, run_parity, run_references
from tests.conftest import photographs


@pytest.fixture(scope="module")
def references(small_bundle: Bundle) -> References:
    return run_references(small_bundle.reference(), ImageSet(tuple("abcd"), photographs(160, 4), "photographs"))


def broken_at(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one tensor a twentieth off."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    nodes = []
    for node in wrong.graph.node:
        nodes.append(node)
        if name in node.output:
            node.output[list(node.output).index(name)] = f"{name}_right"
            nodes.append(helper.make_node("Mul", [f"{name}_right", "slightly_more"], [name]))
    del wrong.graph.node[:]
    wrong.graph.node.extend(nodes)
    wrong.graph.initializer.append(numpy_helper.from_array(np.float32(1.05), "slightly_more"))
    return wrong


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("solve_0_image_0", "canonicalizer 0, iteration 0"),
        ("solve_0_image_3", "canonicalizer 0, iteration 3"),
        ("solve_1_iterate_4", "canonicalizer 1, iteration 4, where iterates are mixed"),
        ("features_1", "block or stage 1 of the backbone"),
        ("logits", "the head"),
    ],
)
def test_the_first_divergence_is_where_it_was_made(
    tensor: str, place: str, small_bundle: Bundle, references: References
) -> None:
    proto = broken_at(onnx.load(small_bundle.onnx_path), tensor)
    report = run_parity(references, OnnxRuntimeEngine(proto, inner=True))
    assert not report.passed
    assert report.content["trace"]["first"] == tensor
    assert report.content["trace"]["place"] == place


def test_a_right_engine_never_leaves_the_reference(small_bundle: Bundle, references: References) -> None:
    report = run_parity(references, OnnxRuntimeEngine(small_bundle.onnx_path, inner=True))
    trace = report.content["trace"]
    assert trace["first"] is None
    assert trace["place"] is None
    layers = 2
    names = [f"solve_{layer}_image_{k}" for layer in range(layers) for k in range(5)]
    names += [f"solve_{layer}_iterate_{k}" for layer in range(layers) for k in range(2, 5)]
    names += [f"phi_{axis}_{layer}" for layer in range(layers) for axis in "xy"]
    blocks = sum(name.startswith("features_") for name in trace["tensors"])
    assert blocks == len(small_bundle.reference().backbone.blocks)
    assert set(trace["tensors"]) == {*names, *(f"features_{i}" for i in range(blocks)), "logits"}
    assert list(trace["tensors"]) == computation_order(trace["tensors"])


@pytest.mark.parametrize("solver", ["loop", "plugin"])
def test_other_forms_show_what_they_have(solver: str, small_bundle: Bundle, references: References) -> None:
    proto = export(lower(small_bundle.reference()), solver=solver)
    report = run_parity(references, OnnxRuntimeEngine(proto, inner=True))
    assert report.passed, report.content["failures"]
    residuals = report.content["solver"]["phi_0"]
    if solver == "plugin":
        assert set(inner_names(proto)) == {*report.content["trace"]["tensors"]} - {"logits"}
        assert residuals["engine"] == pytest.approx(residuals["reference"], rel=1e-2)
    else:
        assert "solve_0_image_4" not in report.content["trace"]["tensors"], "it is inside the loop"
        assert residuals["engine"] is None


def test_residuals_are_those_of_the_solver(small_bundle: Bundle, references: References) -> None:
    report = run_parity(references, OnnxRuntimeEngine(small_bundle.onnx_path, inner=True)).content
    for layer in range(2):
        image = references.fp64[f"solve_{layer}_image_4"]
        iterate = references.fp64[f"solve_{layer}_iterate_4"]
        expected = np.median(np.linalg.norm((image - iterate).reshape(len(image), -1), axis=1))
        found = report["solver"][f"phi_{layer}"]
        assert found["reference"][4] == pytest.approx(float(expected), rel=1e-12)
        assert len(found["reference"]) == 5
        assert found["engine"] == pytest.approx(found["reference"], rel=1e-2)


def test_every_place_has_a_name_in_words() -> None:
    assert describe("phi_x_1") == "canonicalizer 1, its solution"
    assert describe("solve_2_image_0") == "canonicalizer 2, iteration 0"
    shuffled = ["logits", "features_10", "features_9", "phi_y_0", "solve_1_image_0", "phi_x_0", "solve_0_image_3"]
    assert computation_order(shuffled) == [
        *("solve_0_image_3", "phi_x_0", "phi_y_0", "solve_1_image_0", "features_9", "features_10", "logits")
    ]
