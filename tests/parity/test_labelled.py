"""Scores at every scale are tested with models whose answers are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from dec_export.data.digits import BACKGROUND, CLASSES
from dec_export.data.images import Preprocessing
from dec_export.parity.inputs import LabelledImages
from dec_export.parity.measures.labelled import (
    SCALES,
    Scores,
    compare_scores,
    evaluation_images,
    labelled_images,
    measure,
)
from dec_export.recipe.model import Recipe
from dec_export.reference.model import preprocessing_of

COUNT = 6


def groups(name: str) -> list[LabelledImages]:
    recipe = Recipe.named(name)
    return labelled_images(recipe, preprocessing_of(recipe), COUNT)


class Knowing:
    """A model whose logits are certain of the right class of every image whose label it was given."""

    def __init__(self, groups: list[LabelledImages], classes: int, wrong: int = 0) -> None:
        self._answers = {}
        for group in groups:
            for images, labels in ((group.inputs, group.labels), (group.scaled, group.labels_scaled)):
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    answer = (label + 1) % classes if i < wrong else label
                    self._answers[image.tobytes()] = 50.0 * np.moveaxis(np.eye(classes)[answer], -1, 0)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.stack([self._answers[image.tobytes()] for image in images])


@pytest.mark.parametrize(
    ("name", "task", "classes"),
    [("digits", "classification", CLASSES), ("digits_segmentation", "segmentation", CLASSES + 1)],
)
def test_who_knows_every_answer_scores_one(name: str, task: str, classes: int) -> None:
    found = groups(name)
    assert [group.scale for group in found] == list(SCALES)
    scores = measure(Knowing(found, classes), task, classes, found)
    assert scores.plain == scores.locally_scaled == [1.0] * len(SCALES)
    if task == "classification":
        assert scores.invariance == [0.0] * len(SCALES)
    else:
        # The map of a class is warped bilinearly, the labels by the nearest pixel: they differ along borders.
        assert 0 < np.mean(scores.invariance) < 0.2


def test_a_share_of_wrong_answers_costs_that_share() -> None:
    found = groups("digits")
    scores = measure(Knowing(found, CLASSES, wrong=2), "classification", CLASSES, found)
    assert scores.plain == pytest.approx([1 - 2 / COUNT] * len(SCALES))


def test_the_same_images_every_time_and_no_image_left_undistorted() -> None:
    for first, second in zip(groups("digits"), groups("digits"), strict=True):
        assert np.array_equal(first.scaled, second.scaled)
        assert not np.array_equal(first.scaled, first.inputs)


def test_masks_go_where_the_digits_go() -> None:
    for group in groups("digits_segmentation"):
        ink = group.scaled.mean(axis=1) > group.scaled.mean(axis=1).min() + 1.0
        assert (group.labels_scaled[ink] != BACKGROUND).mean() > 0.9


def test_photographs_have_no_labels_and_a_folder_of_ones_own_comes_first() -> None:
    recipe = Recipe.named("deit_s")
    assert labelled_images(recipe, preprocessing_of(recipe)) == []
    assert "photographs" in evaluation_images(recipe, preprocessing_of(recipe), 1, None).source


def test_digits_are_proved_on_digits() -> None:
    recipe = Recipe.named("digits")
    preprocessing = preprocessing_of(recipe)
    images = evaluation_images(recipe, preprocessing, 3, None)
    assert images.array.shape == (3, 3, 64, 64)
    assert "digits" in images.source
    other = dataclasses.replace(preprocessing, mean=(0.0, 0.0, 0.0))
    assert isinstance(other, Preprocessing)
    assert not np.array_equal(evaluation_images(recipe, other, 3, None).array, images.array)


def test_a_report_names_both_scores() -> None:
    scores = Scores([1.0] * 9, [0.5] * 9, [0.1] * 9)
    facts = compare_scores("segmentation", scores, scores, COUNT)
    assert (facts.score, facts.metric, facts.scales) == ("mIoU", "EqE", SCALES)
    assert vars(facts.engine) == {"plain": [1.0] * 9, "locally_scaled": [0.5] * 9, "invariance": [0.1] * 9}
