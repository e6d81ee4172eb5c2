"""A bundle with the classical canonicalizer: every engine, the proof of its choices, and forms that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dec_export import engines
from dec_export.bundle.store import PARITY, REPORT, Bundle
from dec_export.engines.base import RunOptions
from dec_export.engines.tensorrt.flavours import TENSORRT_RTX, why_missing
from dec_export.errors import DecExportError
from dec_export.formats import Format
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.names import LOGITS, phi_names
from dec_export.parity.measures.choice import Choice
from dec_export.parity.measures.residuals import Residuals
from dec_export.parity.measures.trace import Trace
from dec_export.parity.report import summary_of
from dec_export.pipeline.options import ProofOptions, check_forms
from dec_export.pipeline.prove import prove
from dec_export.recipe.model import Recipe
from dec_export.reference.model import create_reference
from dec_export.reference.warp import Phi
from tests.conftest import photographs, randomised
from tests.helpers import build_bundle
from tests.helpers.discrete import discrete_recipe

LIMIT = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("discrete") / "cannon"
    return build_bundle(discrete_recipe(limit=LIMIT), folder, samples=3, expose_phi=True)


def test_the_proof_passes_and_reports_the_choices(bundle: Bundle) -> None:
    summary = summary_of(bundle)
    assert summary is not None
    report = summary.engines["onnxruntime"]
    assert report.passed, report.failures
    assert "judged at the engine's own choice" in report.gate_rule
    facts = report[Choice].choice
    assert facts is not None
    assert (facts.candidates, facts.near_ties, facts.judged_elsewhere) == (LIMIT**2, 0, 0)
    assert facts.smallest_gap > 2 * facts.noise > 0
    document = json.loads((bundle.path / PARITY).read_text())["engines"]["onnxruntime"]
    assert document["choice"]["candidates"] == LIMIT**2
    assert document["solver"] == {}
    assert document["amplification"] == {}
    page = (bundle.path / REPORT).read_text()
    assert "choices near a tie" in page
    assert "chooses one of its fixed warps" in page
    assert "canonicalizer 0 warps the input image" in page


def test_the_graph_has_no_solver_and_returns_phi(bundle: Bundle) -> None:
    proto = onnx.load(bundle.onnx_path)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("ArgMax") == 1
    # Each candidate warps once, and the chosen one again.
    assert kinds.count("GridSample") == LIMIT**2 + 1
    assert [output.name for output in proto.graph.output] == [LOGITS, *phi_names(1)]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_every_engine_passes_and_nan_stays_nan(bundle: Bundle, name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    report = prove(bundle, name, proof=ProofOptions(samples=2), run=RunOptions(threads=1))
    assert report.passed, report.failures
    engine = engines.load(bundle, name, expose_phi=True)
    images = photographs(160, 2)
    expected = engine(images)
    images[1, 2, 80, 33] = np.nan
    for key, found in engine(images).items():
        assert np.isnan(found[1]).all(), key
        np.testing.assert_array_equal(found[0], expected[key][0])


@pytest.mark.skipif(why_missing(TENSORRT_RTX) is not None, reason="TensorRT for RTX is not installed")
def test_tensorrt_for_rtx_builds_it(bundle: Bundle) -> None:
    assert "tensorrt-rtx" in bundle.manifest.plans


def test_segmentation_is_proved(tmp_path: Path) -> None:
    recipe = discrete_recipe(limit=2, segmentation=True)
    found = build_bundle(recipe, tmp_path / "seg", samples=2, engines=["onnxruntime"])
    summary = summary_of(found)
    assert summary is not None
    assert summary.gate == "pass", summary.engines["onnxruntime"].failures


@pytest.mark.parametrize(
    ("forms", "option"),
    [
        (Forms(solver=Solver.LOOP), "--solver"),
        (Forms(solver=Solver.PLUGIN), "--solver"),
        (Forms(solver_precision=Format.FP16), "--solver-precision"),
    ],
)
def test_forms_of_a_solver_are_refused(forms: Forms, option: str) -> None:
    with pytest.raises(DecExportError, match=f"runs no solver and chooses in float32: leave {option} out"):
        check_forms(discrete_recipe(), forms)
    check_forms(discrete_recipe(), Forms(expose_phi=True))


class TestOneStepSolvers:
    """With max_iter of 1 or 2 nothing is mixed, and the solution is one step from the identity."""

    def recipe(self, small: Recipe, max_iter: int) -> Recipe:
        assert small.deep_equilibrium is not None
        canonicalizer = small.deep_equilibrium.model_copy(update={"max_iter": max_iter})
        return small.model_copy(update={"canonicalizer": canonicalizer})

    @pytest.mark.parametrize("solver", ["loop", "plugin"])
    def test_forms_that_iterate_are_refused(self, small_recipe: Recipe, solver: str) -> None:
        with pytest.raises(DecExportError, match=f"--solver {solver} has no iterations to run"):
            check_forms(self.recipe(small_recipe, 2), Forms(solver=Solver(solver)))
        check_forms(self.recipe(small_recipe, 3), Forms(solver=Solver(solver)))
        check_forms(self.recipe(small_recipe, 1), Forms())

    @pytest.mark.parametrize("max_iter", [1, 2])
    def test_the_solution_is_one_step_from_the_identity(self, small_recipe: Recipe, max_iter: int) -> None:
        model = randomised(create_reference(self.recipe(small_recipe, max_iter))).double()
        image = torch.from_numpy(photographs(160, 1)).double()
        with torch.inference_mode():
            found, expected = lower(model)(image), model(image)
            steps = model.DEM.step_functions(image)
        for lowered, phi, f, r in zip(found.phis, expected.phis, steps, (6, 4), strict=True):
            once = f(Phi.ones(1, r, image).flatten())
            torch.testing.assert_close(phi.flatten(), once, rtol=0, atol=0)
            torch.testing.assert_close(lowered.flatten(), once, rtol=1e-9, atol=1e-9)

    def test_a_bundle_is_proved(self, small_recipe: Recipe, tmp_path: Path) -> None:
        found = build_bundle(self.recipe(small_recipe, 2), tmp_path / "two", samples=2, engines=["onnxruntime"])
        summary = summary_of(found)
        assert summary is not None
        assert summary.gate == "pass", summary.engines["onnxruntime"].failures
        page = (found.path / REPORT).read_text()
        assert "one step from the identity" in page
        assert summary.engines["onnxruntime"][Residuals].solver == {}
        assert summary.engines["onnxruntime"][Trace].trace.missing == 0
        # The identity is not sampled; the image and the input of block 0 are warped by the solutions.
        kinds = [node.op_type for node in onnx.load(found.onnx_path).graph.node]
        assert kinds.count("GridSample") == 2
