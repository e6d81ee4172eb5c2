"""Every shipped recipe is built and proved on real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from dec_export.bundle.store import Bundle
from dec_export.data.images import packaged_photographs
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.engines.tensorrt.flavours import TENSORRT_RTX, why_missing
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.names import phi_names
from dec_export.onnx_export.operators import operators_in
from dec_export.onnx_export.tracing import export
from dec_export.parity.measures.agreement import Agreement
from dec_export.parity.measures.amplification import Amplification
from dec_export.parity.measures.distances import Distances
from dec_export.parity.measures.equivariance import Equivariance
from dec_export.parity.measures.labelled import evaluation_images
from dec_export.parity.references import run_references
from dec_export.parity.report import Report, summary_of
from dec_export.parity.run import run_parity
from dec_export.parity.runs import ReferenceOptions
from dec_export.recipe.model import Recipe
from dec_export.recipe.shipped import shipped_recipes
from dec_plugins.plans import plan_kernel
from tests.conftest import needs_rtx
from tests.helpers import build_bundle

# A proof takes a minute, most of it in the float64 reference. These are exported, built as engines and proved with
# --large alone: the first have the arithmetic of smaller siblings, and small models with the arithmetic of those on
# transformers are proved in tests/test_published_end_to_end.py.
LARGE = (
    *("vit_b", "deit_b", "swin_b", "ser_resnet50"),
    *(name for name in shipped_recipes() if name.endswith("_transformers")),
)
# These are exported and built as engines in every run, and proved with --large.
BUILT = ("vit_little", "deit_s_segmentation", "swin_t_segmentation")
# For the same reason three recipes are proved on eight photographs, the others on four.
MORE = ("vit_s", "deit_s", "ser_vit_s_dec")
# The solver's other forms are the same whatever backbone follows: one recipe of each set of resolutions shows it.
ALL_FORMS = ("deit_s", "swin_t", "digits")


def built(name: str, tmp_path: Path, **options: Any) -> Bundle:
    return build_bundle(name, tmp_path / name, threads=torch.get_num_threads(), **options)


def assert_engine(bundle: Bundle, dtypes: set[str]) -> None:
    """The engine of TensorRT for RTX is there, and each of the graph's matrix products runs in its own format."""
    entry = bundle.manifest.plans["tensorrt-rtx"]
    assert entry.options.batch == (1, 8, 32)
    assert set(entry.precision) == dtypes
    assert all(count.found == count.graph > 0 for count in entry.precision.values())
    assert entry.peak_memory_bytes is None or entry.peak_memory_bytes < 8e9


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_within_the_noise_floor(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name in LARGE and not request.config.getoption("--large"):
        pytest.skip("exported and proved with --large alone")
    has_rtx = why_missing(TENSORRT_RTX) is None
    late = Recipe.named(name).backbone.cls_insert_layer
    # Under canonicalizers, tests/parity/test_equivariance.py measures maps on a small model.
    tap = late - 1 if late and Recipe.named(name).canonicalizer is None else None
    bundle = built(name, tmp_path, engines=["tensorrt-rtx" if has_rtx else "none"], tap=tap)
    if has_rtx:
        assert_engine(bundle, {"float32"})
    if name in BUILT and not request.config.getoption("--large"):
        pytest.skip("built, but proved with --large alone")
    model, threads = bundle.reference(), torch.get_num_threads()
    images = evaluation_images(bundle.recipe, bundle.preprocessing, 8 if name in MORE else 4, None)
    references = run_references(model, images, ReferenceOptions(Forms(tap=bundle.tap), threads))
    for solver in Solver if name in ALL_FORMS else [Solver.UNROLL]:
        proto = onnx.load(bundle.onnx_path) if solver is Solver.UNROLL else export(lower(model), Forms(solver, tap=tap))
        report = run_parity(
            references, OnnxRuntimeEngine(proto, extra=phi_names(len(model.DEM.networks)), threads=threads)
        )
        assert_within_the_noise_floor(report, solver)
        assert_as_equivariant_as_the_reference(report, tap)
        if solver == "plugin":
            assert all(plan_kernel(operator).warps for operator in operators_in(proto))


def assert_within_the_noise_floor(report: Report, solver: str) -> None:
    assert report.passed, (solver, report.failures)
    amplifies = bool(report[Amplification].amplification)
    for name, entry in report[Distances].all.items():
        # Without weights DINOv2's layer scales of 1e-5 amplify nothing: a few roundings are then all there is. Nor does
        # a backbone alone, where the gate is the bar.
        assert entry.ratio <= 1 or entry.rel_l2 <= 8 * 2**-24 or not amplifies, (solver, name, entry)
    # Random weights leave near ties between classes; float32 itself may break one differently than float64.
    agreement = report[Agreement]
    assert agreement.top1_agreement >= agreement.top1_agreement_reference_fp32


def assert_as_equivariant_as_the_reference(report: Report, tap: int | None) -> None:
    found = report[Equivariance].equivariance
    if tap is None:
        assert found is None
        return
    assert found is not None
    assert list(found.layers) == [str(tap)]
    for name, facts in found.layers[str(tap)].items():
        assert facts.deviation <= 0.01, name
        assert facts.cosine_engine == pytest.approx(facts.cosine_reference, rel=0.01), name


@pytest.mark.slow
def test_float16_keeps_the_top_class_and_the_solver(tmp_path: Path) -> None:
    photographs = len(packaged_photographs())
    bundle = built("deit_s", tmp_path, samples=photographs, precision="fp16", engines=["onnxruntime"])
    summary = summary_of(bundle)
    assert summary is not None
    report = summary.engines["onnxruntime"]
    assert report.passed, report.failures
    assert report.samples == photographs
    assert report[Agreement].top1_agreement == 1
    for name, entry in report[Distances].phi.items():
        assert entry.rel_l2_reference == entry.rel_l2_reference_fp32, "the solver stays in float32"
        assert entry.ratio <= 1, name


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_s", "swin_t", "beit_b"])
def test_float16_engines_are_built_without_a_gpu(name: str, tmp_path: Path) -> None:
    bundle = built(name, tmp_path, precision="fp16", engines=["tensorrt-rtx"])
    assert_engine(bundle, {"float16", "float32"})


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("solver", ["loop", "plugin"])
def test_engines_of_the_other_forms_are_built_without_a_gpu(solver: str, tmp_path: Path) -> None:
    bundle = built("deit_s", tmp_path, solver=solver, engines=["tensorrt-rtx"])
    assert_engine(bundle, {"float32"})
    use = bundle.manifest.plans["tensorrt-rtx"].plugin
    assert (use is not None) == (solver == "plugin")
    assert use is None or (not use.used and "takes no plugin" in use.detail)
