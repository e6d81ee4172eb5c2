"""InvE and EqE are judged by their relative deviation from the reference's, or by the effect of rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export.data.images import ImageSet
from dec_export.engines.base import EngineDetails
from dec_export.engines.torch import TorchEngine
from dec_export.formats import Format, tolerance_of
from dec_export.parity.measures.agreement import Agreement
from dec_export.parity.measures.invariance import (
    Invariance,
    InvarianceTerms,
    invariance_failures,
    local_scale,
    local_scale_phi,
)
from dec_export.parity.references import References, run_references
from dec_export.parity.run import run_parity
from dec_export.reference.warp import warp_labels
from tests.conftest import photographs
from tests.helpers.models import DPT, segmenter

TERMS = np.array([0.1, 0.2, 0.3])


def terms(fp64: NDArray[Any], in_precision: NDArray[Any]) -> InvarianceTerms:
    return InvarianceTerms("InvE", 0, 0.2, fp64, in_precision, in_precision)


@given(st.floats(0.9, 1.1), st.floats(0, 0.02))
def test_an_engine_passes_within_the_tolerance_or_the_noise(factor: float, rounding: float) -> None:
    # Terms that rounding moves to and fro: their mean alone would hide it.
    rounded = TERMS * (1 + rounding * np.array([1, -1, 1]))
    parity = terms(TERMS, rounded).judge(TERMS * factor, tolerance=0.01, factor=2)
    assert parity.deviation == pytest.approx(abs(factor - 1), abs=1e-12)
    assert parity.noise == pytest.approx(2 * rounding, abs=1e-12)
    assert parity.bound == max(0.01, parity.noise)
    assert bool(invariance_failures(parity)) == (parity.deviation > parity.bound)


def test_nothing_passes_that_is_not_finite() -> None:
    for bad in (np.nan, np.inf):
        found = terms(TERMS, TERMS).judge(TERMS * bad, tolerance=0.01, factor=2)
        assert invariance_failures(found)
        found = terms(TERMS * bad, TERMS * bad).judge(TERMS, tolerance=0.01, factor=2)
        assert invariance_failures(found)


def test_an_exactly_invariant_reference_allows_exactly_invariant_engines_alone() -> None:
    zero = np.zeros(3)
    assert not invariance_failures(terms(zero, zero).judge(zero, tolerance=0.01, factor=2))
    assert invariance_failures(terms(zero, zero).judge(TERMS, tolerance=0.01, factor=2))


def test_sixteen_bits_anywhere_allow_five_percent() -> None:
    assert tolerance_of((Format.FP32, Format.FP32)) == 0.01
    assert tolerance_of((Format.FP32, Format.FP16)) == 0.05
    assert tolerance_of((Format.BF16, Format.FP32)) == 0.05


def test_a_seed_gives_the_same_bits_and_another_seed_others() -> None:
    images = photographs(64, 2)
    assert np.array_equal(local_scale(images, 3), local_scale(images, 3))
    assert not np.array_equal(local_scale(images, 3), local_scale(images, 4))


@pytest.fixture(scope="module")
def references() -> References:
    images = ImageSet(tuple("abcd"), photographs(160, 4), "photographs")
    return run_references(segmenter(DPT).float(), images)


class Changed:
    """The segmentation reference in float32, whose logits are changed for the locally scaled images only."""

    name, exposes_phi, smallest_batch = "changed", False, 1
    largest_batch: int | None = None

    def __init__(self, references: References, change: Any) -> None:
        self._engine = TorchEngine(segmenter(DPT).float())
        self._change, self._scaled = change, references.inputs.scaled

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        outputs = self._engine(image)
        scaled = any(np.array_equal(image[0], one) for one in self._scaled)
        return {**outputs, "logits": self._change(outputs["logits"])} if scaled else outputs

    def describe(self) -> EngineDetails:
        return self._engine.describe()


def test_segmentation_is_judged_by_eqe(references: References) -> None:
    report = run_parity(references, Changed(references, lambda logits: logits))
    assert report.passed, report.failures
    assert report.task == "segmentation"
    assert report[Invariance].invariance.metric == "EqE"
    assert report[Invariance].invariance.reference > 0
    assert report[Agreement].top1_agreement > 0.99, "of the pixels"


def test_an_engine_that_is_less_equivariant_fails_though_its_logits_are_right(references: References) -> None:
    report = run_parity(references, Changed(references, lambda logits: logits[:, :, ::-1].copy()))
    assert [failure.split()[0] for failure in report.failures] == ["EqE"]


def test_labels_are_warped_as_the_image_is() -> None:
    phi = local_scale_phi(2, 5, 0.25)
    mask = np.zeros((2, 1, 64, 64), np.float32)
    mask[:, :, 20:40, 10:50] = 1
    moved = warp_labels(phi, torch.from_numpy(mask[:, 0]).long()).numpy()
    soft = local_scale(mask, 5, 0.25)[:, 0]
    clear = np.abs(soft - 0.5) > 0.499
    assert clear.mean() > 0.9
    assert np.array_equal(moved[clear], soft[clear] > 0.5)
