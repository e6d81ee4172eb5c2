"""The arithmetic of parity, and the gate as a function of the noise floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dec_export.parity import gate
from dec_export.parity.measures.distances import distances
from dec_export.parity.measures.invariance import equivariance_error, invariance_error, local_scale, local_scale_phi
from dec_export.parity.metrics import (
    FLOAT32_UNIT_ROUNDOFF,
    OutputParity,
    compare,
    rel_l2,
)
from dec_export.reference.warp import warp
from dec_export.tasks.measures import mean_iou, softmax, top1_agreement
from tests.conftest import photographs


def parity(distance: float, floor: float) -> OutputParity:
    truth = np.ones((2, 5))
    return compare(truth * (1 + distance), truth * (1 + floor), truth)


@given(st.floats(1e-6, 1e-1), st.floats(1e-6, 1e-1))
def test_the_gate_is_monotone_in_distance_and_floor(distance: float, floor: float) -> None:
    passed = not distances({"logits": parity(distance, floor)}).failures()
    assert passed == (parity(distance, floor).ratio <= gate.MAX_RATIO)
    if passed:
        assert not distances({"logits": parity(distance / 2, floor)}).failures()
        assert not distances({"logits": parity(distance, floor * 2)}).failures()


def test_the_ratio_is_distance_over_floor() -> None:
    assert parity(3e-3, 1e-3).ratio == pytest.approx(3)


def test_a_reference_without_noise_leaves_the_unit_roundoff() -> None:
    assert parity(FLOAT32_UNIT_ROUNDOFF, 0).ratio == pytest.approx(1)
    assert distances({"logits": parity(1e-6, 0)}).failures()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["engine", "reference fp32", "reference fp64"])
def test_nan_and_infinity_anywhere_fail(bad: float, where: str) -> None:
    arrays = {name: np.ones((3, 4)) for name in ("engine", "reference fp32", "reference fp64")}
    arrays[where] = arrays[where].copy()
    arrays[where][1, 2] = bad
    with np.errstate(invalid="ignore"):
        assert distances({"phi_x_0": compare(*arrays.values())}).failures()


def test_a_failure_names_the_tensor_and_the_factor() -> None:
    (sentence,) = distances({"logits": parity(5e-3, 1e-3), "phi_x_0": parity(1e-3, 1e-3)}).failures()
    assert sentence.startswith("logits is 5 times as far")


def test_the_bar_is_two() -> None:
    assert gate.MAX_RATIO == 2
    assert not distances({"logits": parity(1.99e-3, 1e-3)}).failures()
    assert distances({"logits": parity(2.01e-3, 1e-3)}).failures()


def test_a_missing_tensor_fails() -> None:
    found = {"logits": parity(1e-3, 1e-3)}
    assert distances(found, expected=["logits", "phi_x_0"]).failures() == ["phi_x_0 was not returned by the engine"]


def test_errors_below_the_noise_of_one_loud_image_fail_all_the_same() -> None:
    """One image is a hundred times as noisy as the others, and hides their errors in the norm over all samples."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(8, 10))
    loudness = np.array([1e-2] + [1e-4] * 7)[:, None]
    reference = truth + loudness * generator.normal(size=truth.shape)
    engine = truth + np.maximum(loudness, 1e-3) * generator.normal(size=truth.shape)
    found = compare(engine, reference, truth)
    assert found.ratio < 2 < found.typical_ratio
    assert found.worst_sample > 0
    assert "typically" in distances({"logits": found}).failures()[0]


def test_one_wrong_sample_among_many_fails() -> None:
    truth = np.random.default_rng(0).normal(size=(64, 10))
    reference = truth + 1e-4 * np.random.default_rng(1).normal(size=truth.shape)
    engine = reference.copy()
    engine[17] = engine[18]
    assert distances({"logits": compare(engine, reference, truth)}).failures()


@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3))
@settings(max_examples=30)
def test_relative_l2_is_scale_free_and_softmax_shift_free(seed: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    found, truth = generator.normal(size=(2, 4, 6))
    assert rel_l2(found * 3, truth * 3) == pytest.approx(rel_l2(found, truth))
    np.testing.assert_allclose(softmax(truth + shift), softmax(truth), atol=1e-12)
    assert softmax(truth).sum(1) == pytest.approx(1)


def test_invariance_error_has_known_values() -> None:
    certain = np.array([[1e3, 0.0], [0.0, 1e3]])
    assert invariance_error(certain, certain) == 0
    assert invariance_error(certain, certain[::-1]) == pytest.approx(math.sqrt(2))


def test_the_equivariance_error_of_an_equivariant_model_is_zero() -> None:
    phi = local_scale_phi(3, seed=1)
    logits = np.random.default_rng(0).normal(size=(3, 5, 12, 14))
    assert equivariance_error(logits, warp(phi, torch.from_numpy(logits)).numpy(), phi) == pytest.approx(0, abs=1e-12)
    assert equivariance_error(logits, logits, phi) > 0.01


def test_the_equivariance_error_has_known_values() -> None:
    """Logits of two classes are certain, so their distance at a wrong pixel is sqrt(2); a warp keeps constant maps."""
    logits = np.zeros((2, 2, 8, 8))
    logits[:, 0] = 1e3
    scaled = logits.copy()
    scaled[0] = logits[0, ::-1]  # everywhere wrong
    scaled[1, :, :2] = logits[1, ::-1, :2]  # in a quarter of the pixels
    expected = (math.sqrt(2) + math.sqrt(2 / 4)) / 2
    assert equivariance_error(logits, scaled, local_scale_phi(2)) == pytest.approx(expected, rel=1e-12)


def test_mean_iou_has_known_values() -> None:
    labels = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    predicted = np.array([[0, 1, 1, 1], [2, 2, 0, 0]])
    # 0: one of four, 1: two of three, 2: two of four; class 3 is nowhere, and does not count.
    assert mean_iou(predicted, labels, 4) == pytest.approx((1 / 4 + 2 / 3 + 2 / 4) / 3)
    # A class that is predicted and is not there counts as 0.
    assert mean_iou(np.array([0, 3]), np.array([0, 0]), 4) == pytest.approx((1 / 2 + 0) / 2)


@given(st.integers(0, 2**32 - 1), st.permutations(range(5)))
def test_mean_iou_knows_no_names_and_is_one_for_perfect_predictions(seed: int, names: list[int]) -> None:
    labels, predicted = np.random.default_rng(seed).integers(0, 5, (2, 3, 4, 4))
    assert mean_iou(labels, labels, 5) == 1
    assert 0 <= mean_iou(predicted, labels, 5) <= 1
    renamed = np.array(names)
    assert mean_iou(renamed[predicted], renamed[labels], 5) == pytest.approx(mean_iou(predicted, labels, 5))
    assert mean_iou(predicted, labels, 9) == mean_iou(predicted, labels, 5)


def test_top1_agreement_counts_samples() -> None:
    truth = np.eye(4)
    assert top1_agreement(truth, truth) == 1
    assert top1_agreement(truth[[1, 0, 2, 3]], truth) == 0.5


def test_local_scaling_is_reproducible_and_not_the_identity() -> None:
    image = photographs(64, 2)
    assert np.array_equal(local_scale(image, 1), local_scale(image, 1))
    assert not np.array_equal(local_scale(image, 1), local_scale(image, 2))
    assert 0.01 < rel_l2(local_scale(image), image) < 1
    assert local_scale(image).dtype == np.float32
    by_phi = warp(local_scale_phi(2, 1), torch.from_numpy(image).double())
    assert np.array_equal(local_scale(image, 1), by_phi.float().numpy())
