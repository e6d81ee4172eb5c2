"""A trace finds the place at which an engine was broken."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from dec_export.bundle.store import Bundle
from dec_export.data.images import ImageSet
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.names import computation_order, describe
from dec_export.onnx_export.tracing import export, inner_names, with_outputs
from dec_export.parity.measures.residuals import Residuals
from dec_export.parity.measures.trace import Trace
from dec_export.parity.references import References, run_references
from dec_export.parity.run import run_parity
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference
from tests.conftest import photographs


@pytest.fixture(scope="module")
def references(small_bundle: Bundle) -> References:
    return run_references(small_bundle.reference(), ImageSet(tuple("abcd"), photographs(160, 4), "photographs"))


def broken_at(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the model with an error of a twentieth in one tensor."""
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
    assert report[Trace].trace.first == tensor
    assert report[Trace].trace.place == place


def test_a_right_engine_never_leaves_the_reference(small_bundle: Bundle, references: References) -> None:
    report = run_parity(references, OnnxRuntimeEngine(small_bundle.onnx_path, inner=True))
    trace = report[Trace].trace
    assert trace.first is None
    assert trace.place is None
    layers = 2
    names = [f"solve_{layer}_image_{k}" for layer in range(layers) for k in range(5)]
    names += [f"solve_{layer}_iterate_{k}" for layer in range(layers) for k in range(2, 5)]
    names += [f"phi_{axis}_{layer}" for layer in range(layers) for axis in "xy"]
    blocks = sum(name.startswith("features_") for name in trace.tensors)
    assert blocks == len(small_bundle.reference().backbone.blocks)
    assert set(trace.tensors) == {*names, *(f"features_{i}" for i in range(blocks)), "logits"}
    assert list(trace.tensors) == computation_order(trace.tensors)


@pytest.mark.parametrize("solver", ["loop", "plugin"])
def test_other_forms_show_what_they_have(solver: str, small_bundle: Bundle, references: References) -> None:
    proto = export(lower(small_bundle.reference()), Forms(Solver(solver)))
    report = run_parity(references, OnnxRuntimeEngine(proto, inner=True))
    assert report.passed, report.failures
    residuals = report[Residuals].solver["phi_0"]
    if solver == "plugin":
        assert set(inner_names(proto)) == {*report[Trace].trace.tensors} - {"logits"}
        assert residuals.engine == pytest.approx(residuals.reference, rel=1e-2)
    else:
        assert "solve_0_image_4" not in report[Trace].trace.tensors, "it is inside the loop"
        assert residuals.engine is None


def test_residuals_are_those_of_the_solver(small_bundle: Bundle, references: References) -> None:
    report = run_parity(references, OnnxRuntimeEngine(small_bundle.onnx_path, inner=True))
    for layer in range(2):
        images = [references.outputs.fp64[f"solve_{layer}_image_{k}"] for k in range(5)]
        mixed = [references.outputs.fp64[f"solve_{layer}_iterate_{k}"] for k in range(2, 5)]
        iterates = [np.ones_like(images[0]), images[0], *mixed]
        distances = [(z - f).reshape(len(z), -1) for z, f in zip(iterates, images, strict=True)]
        expected = [float(np.median(np.linalg.norm(d, axis=1))) for d in distances]
        found = report[Residuals].solver[f"phi_{layer}"]
        assert found.reference == pytest.approx(expected, rel=1e-12)
        assert found.engine == pytest.approx(found.reference, rel=1e-2)


def test_every_place_has_a_name_in_words() -> None:
    assert describe("phi_x_1") == "canonicalizer 1, its solution"
    assert describe("solve_2_image_0") == "canonicalizer 2, iteration 0"
    shuffled = ["logits", "features_10", "features_9", "phi_y_0", "solve_1_image_0", "phi_x_0", "solve_0_image_3"]
    assert computation_order(shuffled) == [
        *("solve_0_image_3", "phi_x_0", "phi_y_0", "solve_1_image_0", "features_9", "features_10", "logits")
    ]


def test_a_solver_that_converges_early_has_as_many_iterates_as_all_formats_share(small_recipe: Recipe) -> None:
    """The solver ends below 1e-6 after a number of iterations that depends on the format and on the batch."""
    long = small_recipe.canonicalizer.model_copy(update={"max_iter": 24})
    model = contracting(create_reference(small_recipe.model_copy(update={"canonicalizer": long})))
    found = run_references(model, ImageSet(tuple("abcdef"), photographs(160, 6), "photographs"))
    steps = [sum(name.startswith("solve_0_image") for name in o) for o in (found.outputs.fp32, found.outputs.fp64)]
    assert max(steps) < 24, "it converged"
    report = run_parity(found, OnnxRuntimeEngine(export(lower(model)), inner=True))
    assert report.passed, report.failures
    assert f"solve_0_image_{min(steps) - 1}" in report[Trace].trace.tensors


def contracting(model: DecModel) -> DecModel:
    """Return a model whose scores hardly depend on the image, so that a step hardly depends on its start."""
    with torch.no_grad():
        for network in model.DEM.networks:
            network[-3].weight.mul_(0.02)
    return model


def test_an_engine_that_shows_only_its_logits_is_not_said_to_fail_at_the_head(
    small_bundle: Bundle, references: References
) -> None:
    proto = broken_at(onnx.load(small_bundle.onnx_path), "solve_0_image_0")
    trace = run_parity(references, OnnxRuntimeEngine(proto))[Trace].trace
    assert trace.first == "logits"
    assert trace.place == "the head or before it, where the engine shows nothing"
    assert trace.missing > 10


def test_of_many_images_a_few_are_traced_and_all_are_judged(small_bundle: Bundle) -> None:
    array = np.concatenate([photographs(160, 8), photographs(160, 2)[:, :, ::-1].copy()])
    found = run_references(small_bundle.reference(), ImageSet(tuple("abcdefghij"), array, "photographs"))
    assert len(found.outputs.fp64["logits"]) == len(found.outputs.fp64["phi_x_0"]) == 10
    assert len(found.outputs.fp64["features_0"]) == len(found.outputs.fp64["solve_0_image_0"]) == 8
    assert run_parity(found, OnnxRuntimeEngine(small_bundle.onnx_path, inner=True)).passed


def test_bfloat16_features_leave_as_float32(small_model: DecModel) -> None:
    proto = export(lower(small_model, "bf16"))
    shown = with_outputs(proto, inner_names(proto))
    onnx.checker.check_model(shown, full_check=True)
    types = {output.name: output.type.tensor_type.elem_type for output in shown.graph.output}
    assert set(types.values()) == {onnx.TensorProto.FLOAT}
    engine = OnnxRuntimeEngine(proto, inner=True, bfloat16=True)
    assert engine(photographs(160, 1))["features_0"].dtype == np.float32


def test_another_engine_may_show_what_the_judged_one_hides(small_bundle: Bundle, references: References) -> None:
    judged = OnnxRuntimeEngine(small_bundle.onnx_path)
    shows = OnnxRuntimeEngine(broken_at(onnx.load(small_bundle.onnx_path), "features_1"), inner=True)
    report = run_parity(references, judged, shows)
    assert report.passed, "the engine that shows is not judged"
    assert report[Trace].trace.first == "features_1"
    assert report[Trace].trace.engine == "built anew to show its inner tensors"
