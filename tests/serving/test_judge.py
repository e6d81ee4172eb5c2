"""Answers are judged by the noise floor, and a number that is not finite is never right."""

from __future__ import annotations

import numpy as np
import pytest

from dec_export.bundle.store import Bundle
from dec_export.serving.triton.judge import distance, same_answer, tolerance_of
from dec_export.tasks import TASKS

CLASSIFY, SEGMENT = TASKS["classification"], TASKS["segmentation"]
LOGITS = np.array([[1.0, 4.0, 2.0]], np.float32)


def answer(classes: list[int], scores: list[float] | None = None) -> dict[str, np.ndarray]:
    exponentials = np.exp(LOGITS[0].astype(np.float64))
    right = (exponentials / exponentials.sum())[[c % 3 for c in classes]]
    return {"classes": np.array([classes], np.int32), "scores": np.array([right if scores is None else scores])}


def test_the_distance_is_the_largest_difference_over_the_largest_value() -> None:
    assert distance(LOGITS, LOGITS) == 0
    assert distance(LOGITS + np.float32(0.5), LOGITS) == pytest.approx(0.5 / 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    found = LOGITS.copy()
    found[0, 2] = bad
    assert distance(found, LOGITS) == np.inf
    assert distance(None, LOGITS) == np.inf
    assert distance(LOGITS[:, :2], LOGITS) == np.inf


def test_an_answer_is_right_by_its_classes_and_its_scores() -> None:
    assert same_answer(CLASSIFY, answer([1, 2]), LOGITS[0], 1e-3)
    assert not same_answer(CLASSIFY, answer([2, 1]), LOGITS[0], 1e-3), "another class first"
    assert not same_answer(CLASSIFY, answer([1, 2], [0.5, 0.1]), LOGITS[0], 1e-3), "the right classes of another image"
    assert not same_answer(CLASSIFY, answer([4, 2]), LOGITS[0], 1e-3), "a class that is none"
    assert not same_answer(CLASSIFY, {"classes": None, "scores": None}, LOGITS[0], 1e-3)


def test_classes_that_are_equal_but_for_the_noise_are_both_right() -> None:
    logits = np.array([3.0, 3.0005, 0.0], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    other = {"classes": np.array([[0]]), "scores": probabilities[None, :1]}
    assert same_answer(CLASSIFY, other, logits, 1e-3)
    assert not same_answer(CLASSIFY, other, logits, 1e-5)


def test_a_map_is_judged_pixel_by_pixel() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[1] = 1
    assert same_answer(SEGMENT, {"class_map": np.ones((1, 2, 2), np.uint8)}, logits, 1e-3)
    wrong = np.ones((1, 2, 2), np.uint8)
    wrong[0, 1, 1] = 2
    assert not same_answer(SEGMENT, {"class_map": wrong}, logits, 1e-3)
    assert not same_answer(SEGMENT, {"class_map": np.ones((1, 4, 4), np.uint8)}, logits, 1e-3)
    assert not same_answer(SEGMENT, {"class_map": np.full((1, 2, 2), 3, np.uint8)}, logits, 1e-3)


def test_a_proved_bundle_brings_its_own_tolerance(small_bundle: Bundle, digits_bundle: Bundle) -> None:
    assert small_bundle.parity is not None
    floor = small_bundle.parity["engines"]["onnxruntime"]["outputs"]["logits"]["rel_l2_reference"]
    assert tolerance_of(small_bundle) == pytest.approx(16 * floor)
    assert tolerance_of(digits_bundle) == 1e-2
