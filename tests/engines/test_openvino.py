"""OpenVINO runs every form in float32, passes the checks of outputs, and refuses formats of 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dec_export.engines.base import RunOptions
from dec_export.engines.openvino import OpenVinoEngine
from dec_export.engines.registry import engine_spec
from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import export, inner_names, save
from dec_export.parity.measures.distances import Distances
from dec_export.pipeline.options import ProofOptions
from dec_export.pipeline.prove import prove
from dec_export.recipe.model import Recipe
from dec_export.reference.model import create_reference
from tests.conftest import photographs, randomised
from tests.helpers import build_bundle

pytest.importorskip("openvino")
FORMS = ("unroll", "loop", "plugin")


@pytest.fixture(scope="module")
def files(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of the small model in each form, with a feature map as an output."""
    model, folder = lower(randomised(create_reference(small_recipe))), tmp_path_factory.mktemp("forms")
    for form in FORMS:
        save(export(model, Forms(Solver(form), tap=1, expose_phi=True)), folder / f"{form}.onnx")
    return {form: folder / f"{form}.onnx" for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_any_pixel_that_is_not_finite_makes_every_output_nan(form: str, files: dict[str, Path]) -> None:
    engine, images = OpenVinoEngine(files[form], threads=1), photographs(160, 2)
    expected = engine(images)
    assert all(np.isfinite(value).all() for value in expected.values())
    for value, place in zip((np.nan, np.inf, -np.inf), ((0, 0, 0), (2, 159, 159), (1, 80, 33)), strict=True):
        changed = images.copy()
        changed[(1, *place)] = value
        for name, found in engine(changed).items():
            assert np.isnan(found[1]).all(), (name, value, place)
            np.testing.assert_array_equal(found[0], expected[name][0])


@pytest.mark.parametrize("form", ["loop", "plugin"])
def test_inner_tensors_are_shown_beside_the_model_as_it_is(form: str, files: dict[str, Path]) -> None:
    import onnx

    from dec_export.onnx_export.passes.inline import inline

    images, plain = photographs(160, 3), OpenVinoEngine(files[form], threads=1)
    engine = OpenVinoEngine(files[form], inner=True, threads=1)
    outputs, proto = engine(images), onnx.load(files[form])
    assert engine.exposes_phi
    assert set(outputs) == {output.name for output in proto.graph.output} | set(inner_names(inline(proto)))
    for name, value in plain(images).items():
        np.testing.assert_array_equal(outputs[name], value)


def test_it_passes_the_gate(small_recipe: Recipe, tmp_path: Path) -> None:
    bundle = build_bundle(small_recipe, tmp_path / "bundle", samples=4, engines=["openvino"], threads=1)
    assert bundle.manifest.gate == "pass"
    assert bundle.manifest.engines["openvino"].details["precision"] == "f32"
    assert "openvino" in bundle.manifest.versions
    report = prove(bundle, "openvino", run=RunOptions(threads=1), proof=ProofOptions(samples=4))
    assert report.passed
    assert set(report[Distances].phi) == {"phi_x_0", "phi_y_0", "phi_x_1", "phi_y_1"}


@pytest.mark.parametrize(
    ("form", "precision", "solver_precision"),
    [("plugin", "fp16", "fp32"), ("unroll", "bf16", "fp32"), ("loop", "fp32", "fp16")],
)
def test_sixteen_bits_are_refused(
    form: str, precision: str, solver_precision: str, small_recipe: Recipe, tmp_path: Path
) -> None:
    """On a CPU, OpenVINO computes 16-bit operators in float32 wherever they are in the graph."""
    path = tmp_path / "model.onnx"
    lowered = lower(create_reference(small_recipe), Format(precision), Format(solver_precision))
    save(export(lowered, Forms(Solver(form))), path)
    with pytest.raises(EngineError, match=r"in (b?float16), which OpenVINO would compute in another format"):
        OpenVinoEngine(path)


def test_a_file_that_it_cannot_load_is_a_sentence(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Nonesuch", ["image"], ["logits"])], "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=r"OpenVINO .* cannot load the model: .*No conversion rule .*Nonesuch"):
        OpenVinoEngine(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="is no ONNX file"):
        OpenVinoEngine(tmp_path / "model.onnx")


def test_auto_leaves_it_to_those_who_name_it() -> None:
    assert not engine_spec("openvino").automatic
