"""The measures of the published evaluation, beside numbers that the authors' functions gave for the same formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export.tasks.measures import (
    accuracy_at_scales,
    mean_iou,
    relative_changes,
    scale_distances,
    score_variances,
)

# What the authors' functions return for the formulas below, computed in float64.
LSCAL_EQ_ERROR = 0.6411662990305415
EQ_LOSS = 0.04007468813916285
CONSISTENCY, CONSISTENCY_WITHOUT_CLASS_0 = 0.03164320544765334, 0.031994020543657985
SEEDS = st.integers(0, 2**32 - 1)


def scenes() -> NDArray[np.float64]:
    """Logits of 4 scenes at 3 scales, of 1000 classes, for which the authors' function is written."""
    scene, scale, kind = np.meshgrid(np.arange(4), np.arange(3), np.arange(1000), indexing="ij")
    wave = np.sin(1.0 + 0.37 * scene + 0.11 * scale * (1 + scene) + 0.013 * kind * (scene + 1))
    return np.asarray(8 * wave + 0.5 * scale * np.cos(0.7 * kind))


def segmented(image: int, copy: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and right classes of 12 x 12 pixels; later copies have more wrong pixels."""
    y, x = np.mgrid[0:12, 0:12]
    labels = ((x + 2 * y + 3 * image) // 5) % 5
    wrong = (x * (copy + 2) + y * (3 * image + 1) + copy * image) % 7 < copy + image
    return np.where(wrong, (labels + 1 + x % 2) % 5, labels), labels


def random_logits(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(scale=3, size=shape)


def test_lscal_eq_error_is_the_published_one() -> None:
    image, copy = np.meshgrid(np.arange(3), np.arange(5), indexing="ij")
    kind = np.arange(10.0)
    logits = 3 * np.sin(1.3 * kind + 0.9 * image[..., None])
    logits = logits + 0.4 * copy[..., None] * np.cos(0.5 * kind + image[..., None])
    assert relative_changes(logits[:, 0], logits[:, 1:]).mean() == pytest.approx(LSCAL_EQ_ERROR, rel=1e-14)


def test_eq_loss_is_the_published_one() -> None:
    distances = scale_distances(scenes())
    assert distances.mean() == pytest.approx(EQ_LOSS, rel=1e-14)
    assert distances[:, 1:].mean() == pytest.approx(EQ_LOSS * 3 / 2, rel=1e-14), "the zeros of scale 1 are in the mean"


def test_accuracy_at_every_scale_is_the_published_one() -> None:
    labels = np.array([44, 485, 157, 817])
    assert accuracy_at_scales(scenes(), labels).tolist() == [0.25, 0.0, 0.25]
    assert accuracy_at_scales(scenes(), labels, 5).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(("ignored", "expected"), [(None, CONSISTENCY), (0, CONSISTENCY_WITHOUT_CLASS_0)])
def test_consistency_is_the_published_one(ignored: int | None, expected: float) -> None:
    scores = [[mean_iou(*segmented(image, copy), 5, ignored) for copy in range(4)] for image in range(3)]
    assert score_variances(np.array(scores)).mean() == pytest.approx(expected, rel=1e-13)


def test_ignored_pixels_may_be_of_no_class_and_without_pixels_there_is_no_score() -> None:
    predicted, labels = segmented(1, 1)
    edge = labels.copy()
    edge[0], predicted[0] = 255, 3
    assert mean_iou(predicted, edge, 5, 255) == mean_iou(predicted[1:], labels[1:], 5)
    assert np.isnan(mean_iou(predicted, np.full_like(labels, 255), 5, 255))


@given(SEEDS, st.integers(1, 4), st.integers(2, 12))
def test_relative_changes_are_those_of_each_pair(seed: int, copies: int, classes: int) -> None:
    logits, other = random_logits(seed, 2, classes), random_logits(seed + 1, 2, copies, classes)
    found = relative_changes(logits, other)
    for image in range(2):
        here = torch.from_numpy(logits[image]).softmax(0)
        for copy in range(copies):
            change = (torch.from_numpy(other[image, copy]).softmax(0) - here).norm() / here.norm()
            assert found[image, copy] == pytest.approx(float(change), rel=1e-12)
    assert (found <= np.sqrt(classes)).all()
    assert not relative_changes(logits, logits[:, None]).any()


@given(SEEDS, st.floats(-50, 50))
def test_distances_are_those_of_each_scale_and_do_not_see_a_constant(seed: int, constant: float) -> None:
    logits = random_logits(seed, 3, 4, 5)
    found = scale_distances(logits)
    assert not found[:, 0].any()
    probabilities = torch.from_numpy(logits).softmax(2)
    assert found == pytest.approx((probabilities - probabilities[:, :1]).norm(dim=2).numpy(), abs=1e-14)
    assert scale_distances(logits + constant) == pytest.approx(found, abs=1e-13)
    assert (found <= np.sqrt(2)).all()


@given(SEEDS, st.integers(1, 9))
def test_accuracy_at_scales_counts_the_largest_logits(seed: int, k: int) -> None:
    logits = random_logits(seed, 6, 3, 7)
    labels = np.random.default_rng(seed).integers(0, 7, 6)
    best = np.argsort(-logits, axis=2)[:, :, :k]
    assert accuracy_at_scales(logits, labels, k).tolist() == (best == labels[:, None, None]).any(2).mean(0).tolist()


def test_of_equal_logits_the_lower_class_counts() -> None:
    equal = np.zeros((3, 1, 3))
    assert accuracy_at_scales(equal, np.array([0, 1, 2])).tolist() == [1 / 3]
    assert accuracy_at_scales(equal, np.array([0, 1, 2]), 2).tolist() == [2 / 3]


@given(SEEDS)
def test_the_variance_is_zero_for_equal_scores_and_does_not_see_their_order(seed: int) -> None:
    scores = np.random.default_rng(seed).uniform(size=(3, 5))
    assert score_variances(scores) == pytest.approx(score_variances(scores[:, ::-1].copy()), abs=1e-15)
    assert (score_variances(scores) <= 0.25).all()
    assert score_variances(np.repeat(scores[:, :1], 4, axis=1)) == pytest.approx(0, abs=1e-30)
    assert score_variances(np.array([[0.0, 1.0]])).tolist() == [0.25]
