"""Proofs of real engines pass, and proofs of engines with deliberate errors fail."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dec_export import engines
from dec_export.bundle.store import Bundle
from dec_export.data.images import ImageSet
from dec_export.errors import EngineError
from dec_export.parity.measures.agreement import Agreement
from dec_export.parity.measures.amplification import Amplification, AmplificationMeasure, Gain, amplification
from dec_export.parity.measures.distances import Distances
from dec_export.parity.measures.invariance import Invariance
from dec_export.parity.references import References, run_references
from dec_export.parity.run import run_parity
from dec_export.pipeline.options import ProofOptions
from dec_export.pipeline.prove import prove
from dec_export.reference.warp import Phi
from tests.conftest import photographs


@pytest.fixture(scope="module")
def references(small_bundle: Bundle) -> References:
    array = photographs(160, 4)
    return run_references(small_bundle.reference(), ImageSet(tuple("abcd"), array, "photographs"))


class Wrong:
    """ONNX Runtime, with changed outputs."""

    name = "wrong"
    exposes_phi = True
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(self, bundle: Bundle, change: Any) -> None:
        self._engine = engines.load(bundle, "onnxruntime", expose_phi=True)
        self._change = change

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return self._change(self._engine(image))

    def describe(self) -> engines.EngineDetails:
        return self._engine.describe()


def test_onnxruntime_passes_and_the_report_keeps_the_contract(small_bundle: Bundle, references: References) -> None:
    report = run_parity(references, engines.load(small_bundle, "onnxruntime", expose_phi=True))
    assert report.passed, report.failures
    assert report.engine == "onnxruntime"
    assert report.samples == 4
    assert report.batch_sizes == (1, 4)
    assert set(report[Distances].outputs) == {"logits"}
    assert set(report[Distances].phi) == {"phi_x_0", "phi_y_0", "phi_x_1", "phi_y_1"}
    for entry in report[Distances].all.values():
        assert entry.rel_l2_reference_fp32 > 0
        assert entry.ratio <= 1, "the lowered model should be nearer to float64 than the reference"
    invariance = report[Invariance].invariance
    assert invariance.engine == pytest.approx(invariance.reference, rel=0.01)
    assert report[Agreement].top1_agreement == 1
    assert set(report[Amplification].amplification) == {"phi_0", "phi_1"}
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_the_float32_reference_is_its_own_noise_floor(small_bundle: Bundle, references: References) -> None:
    assert run_parity(references, engines.load(small_bundle, "torch", expose_phi=True)).passed


@pytest.mark.parametrize(
    "change",
    [
        lambda o: {**o, "logits": o["logits"] * 1.01},
        lambda o: {**o, "logits": o["logits"][::-1].copy()},
        lambda o: {**o, "phi_y_1": o["phi_y_1"] + 0.01},
        lambda o: {**o, "logits": np.where(o["logits"] == o["logits"].max(), np.nan, o["logits"])},
        lambda o: {**o, "phi_x_0": o["phi_x_0"] + np.inf},
        lambda o: {**o, "logits": o["logits"] if len(o["logits"]) == 1 else o["logits"] * 1.01},
        lambda o: {**o, "logits": o["logits"] if len(o["logits"]) > 1 else o["logits"] * 1.01},
        lambda o: {name: value for name, value in o.items() if name != "phi_x_1"},
        lambda o: {"logits": o["logits"]},
    ],
    ids=[
        *("scaled", "shuffled", "phi off", "one NaN", "infinite phi", "wrong in a batch", "wrong alone"),
        *("a phi missing", "no phi at all"),
    ],
)
def test_a_wrong_engine_fails(change: Any, small_bundle: Bundle, references: References) -> None:
    with np.errstate(invalid="ignore"):
        report = run_parity(references, Wrong(small_bundle, change))
    assert not report.passed
    assert report.failures
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_nan_on_the_locally_scaled_images_alone_fails(small_bundle: Bundle, references: References) -> None:
    engine = engines.load(small_bundle, "onnxruntime", expose_phi=True)

    class Fragile(Wrong):
        def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            outputs = engine(image)
            if any(
                (image == scaled).all() for scaled in (references.inputs.scaled, *references.inputs.scaled[:, None])
            ):
                outputs["logits"] = outputs["logits"] * np.nan
            return outputs

    report = run_parity(references, Fragile(small_bundle, None))
    assert report.failures == ("logits holds NaN or infinity on the locally scaled images",)
    assert report.model_dump(mode="json")["invariance"]["engine"] is None


def test_an_engine_without_logits_is_an_error(small_bundle: Bundle, references: References) -> None:
    with pytest.raises(EngineError, match="but no logits"):
        run_parity(references, Wrong(small_bundle, lambda o: {"phi_x_0": o["phi_x_0"]}))


def test_a_reference_that_is_not_finite_fails(small_bundle: Bundle, references: References) -> None:
    engine = engines.load(small_bundle, "onnxruntime", expose_phi=True)
    gains = references.of(AmplificationMeasure)
    broken = {"phi_0": Gain(random=float("nan"), largest=1.0), "phi_1": gains["phi_1"]}
    by_measure = {**references.by_measure, Amplification.name: broken}
    report = run_parity(dataclasses.replace(references, by_measure=by_measure), engine)
    assert report.failures == ("the float64 reference itself is not finite on these images",)
    assert not report.passed


def test_large_sets_are_run_in_batches_of_eight(small_bundle: Bundle) -> None:
    report = prove(small_bundle, proof=ProofOptions(samples=12))
    assert report.passed
    assert report.batch_sizes == (1, 8)


def test_an_engine_of_another_shape_is_an_error(small_bundle: Bundle, references: References) -> None:
    with pytest.raises(EngineError, match="has shape"):
        run_parity(references, Wrong(small_bundle, lambda o: {**o, "logits": o["logits"][:, :5]}))


def test_one_image_is_enough_and_still_meets_a_batch(small_bundle: Bundle) -> None:
    report = prove(small_bundle, proof=ProofOptions(samples=1))
    assert report.passed
    assert report.batch_sizes == (1, 2)


def test_references_leave_the_model_in_float32(small_bundle: Bundle) -> None:
    model = small_bundle.reference()
    run_references(model, ImageSet(("a",), photographs(160, 1), "photographs"))
    assert next(model.parameters()).dtype == torch.float32


def test_amplification_of_a_known_derivative(small_bundle: Bundle) -> None:
    """Every f is replaced by z -> 3 z + constant, which multiplies any change by three."""
    model = small_bundle.reference().double()
    model.DEM.step_functions = lambda _: [lambda z: 3 * z + 1, lambda z: 0.5 * z]  # type: ignore[method-assign]
    image = torch.zeros(2, 3, 160, 160, dtype=torch.float64)
    gains = amplification(model, image, [Phi.ones(2, r, image) for r in (6, 4)])
    for layer, gain in (("phi_0", 3), ("phi_1", 0.5)):
        assert gains[layer].random == pytest.approx(gain, rel=1e-6)
        assert gains[layer].largest == pytest.approx(gain, rel=1e-6)
