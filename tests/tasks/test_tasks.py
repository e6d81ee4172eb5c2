"""A task is one file, on which all code that depends on the task calls, and an unknown name is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export import tasks
from dec_export.data.digits import BACKGROUND, CLASSES, compose, source_digits
from dec_export.errors import DecExportError, RecipeError, ServingError
from dec_export.parity.measures.invariance import PhiWarp, invariance_of, local_scale_phi
from dec_export.parity.measures.labelled import LabelledImages, compare_scores, labelled_images, measure
from dec_export.recipe.model import Recipe
from dec_export.reference.model import create_reference, preprocessing_of
from dec_export.tasks import TASKS, Task, task_named
from dec_export.tasks.base import Answer, Kind, LabelledPictures, Warp
from dec_export.tasks.scores import Columns, Metric, mean_of

RECIPES = {"classification": "digits", "segmentation": "digits_segmentation"}
EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)


def test_an_unknown_task_is_refused_wherever_it_is_named() -> None:
    with pytest.raises(DecExportError, match="Unknown task 'detection', expected one of classification, segmentation"):
        task_named("detection")
    with pytest.raises(DecExportError, match="Unknown task 'detection'"):
        invariance_of("detection", np.zeros((1, 2)), np.zeros((1, 2)), local_scale_phi(1))
    with pytest.raises(DecExportError, match="Unknown task 'detection'"):
        Recipe.named("digits", "detection")


def test_a_recipe_names_a_task_that_exists(tmp_path: Any) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe.named("digits").to_yaml().replace("task: classification", "task: detection"))
    with pytest.raises(RecipeError, match="must be one of classification, segmentation, found 'detection'"):
        Recipe.load(file)


def test_the_names_of_tasks_and_ensembles_are_their_own() -> None:
    assert all(name == task.name for name, task in TASKS.items())
    assert len(set(tasks.ensemble_names())) == len(TASKS)


@EVERY
def test_logits_have_the_shape_that_the_task_says(task: Task) -> None:
    recipe = Recipe.named(RECIPES[task.name])
    backbone = recipe.backbone
    assert recipe.task == task.name
    assert recipe.name.endswith(task.recipe_suffix)
    assert backbone.num_classes == task.count_classes(CLASSES)
    with torch.inference_mode():
        logits = create_reference(recipe)(torch.zeros(2, 3, backbone.image_size, backbone.image_size)).logits
    assert logits.shape == (2, *task.logits_shape(backbone.num_classes, backbone.image_size))


@EVERY
def test_labels_have_the_shape_of_predictions(task: Task) -> None:
    pictures = compose(source_digits("test"), 3, 5)
    labels = task.labels_of(pictures)
    assert labels.shape == (3, *task.logits_shape(task.count_classes(CLASSES), 64)[1:])
    assert labels.max() < task.count_classes(CLASSES)
    moved = task.scale_labels(labels, PhiWarp(local_scale_phi(3, 0, 0.25)))
    assert moved.shape == labels.shape
    assert set(np.unique(moved)) <= set(np.unique(labels))
    assert np.array_equal(moved, labels) == (task.name == "classification")


def test_pixels_without_an_object_are_background() -> None:
    task = TASKS["segmentation"]
    assert task.count_classes(CLASSES) == BACKGROUND + 1
    assert (task.labels_of(compose(source_digits("test"), 2, 0)) == BACKGROUND).any()


@EVERY
@given(seed=st.integers(0, 2**32 - 1))
def test_right_predictions_score_one(task: Task, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, (3, *task.logits_shape(4, 5)[1:]))
    assert task.score_of(labels, labels, 4) == 1
    assert 0 <= task.score_of((labels + 1) % 4, labels, 4) < 1


@EVERY
def test_words_tell_an_engine_from_the_reference(task: Task) -> None:
    reference = np.random.default_rng(0).normal(size=task.logits_shape(3, 4))
    other = reference[::-1].copy()
    assert task.compare(reference, reference) != task.compare(other, reference)
    assert task.describe(reference)


def test_a_picture_of_a_single_class_names_it() -> None:
    task = TASKS["classification"]
    logits = np.array([0.0, np.log(3.0)])
    assert task.caption(logits) == "class 1 (75.0%)"
    assert task.caption(np.array([0.0, np.nan])) == "not finite"
    assert task.class_map(logits) is None


def test_a_picture_of_many_classes_is_a_map() -> None:
    task = TASKS["segmentation"]
    logits = np.zeros((3, 2, 2))
    logits[2, 0, 1] = 1
    found = task.class_map(logits)
    assert found is not None
    assert found.tolist() == [[0, 2], [0, 0]]
    assert (task.caption(logits), task.describe(logits)) == ("", "2 classes")
    assert task.compare(np.zeros((3, 2, 2)), logits) == "same class in 75.00%"


def test_a_served_map_holds_256_classes() -> None:
    for task in TASKS.values():
        task.check_served(256)
    TASKS["classification"].check_served(257)
    with pytest.raises(ServingError, match="one byte for each pixel, and the model has 257 classes, more than 256"):
        TASKS["segmentation"].check_served(257)


class Parity(Task):
    """An example of a new task: whether the labelled digit is odd, from the logits of (even, odd)."""

    name = "parity"
    metric = "change of the verdict"
    score = "share of right verdicts"
    recipe_suffix = "_parity"
    ensemble = "judge"

    def logits_shape(self, classes: int, image_size: int) -> tuple[int, ...]:
        return (classes,)

    def count_classes(self, kinds: int) -> int:
        return min(2, kinds)

    def labels_of(self, pictures: LabelledPictures) -> NDArray[np.int64]:
        return pictures.labels % 2

    def scale_labels(self, labels: Any, warp: Warp) -> Any:
        return labels

    def invariance_terms(self, logits: Any, logits_scaled: Any, warp: Warp) -> Any:
        return (logits.argmax(axis=1) != logits_scaled.argmax(axis=1)).astype(np.float64)

    def score_of(self, predicted: Any, labels: Any, classes: int) -> float:
        return float((predicted == labels).mean())

    def image_columns(self, logits: Any, labels: Any, ignored: int | None) -> Columns:
        return {"right": (logits.argmax(axis=1) == labels).astype(np.float64)}

    def metrics(self) -> tuple[Metric, ...]:
        return (Metric("verdicts", "right verdicts", mean_of("right"), column="right"),)

    def caption(self, logits: Any) -> str:
        return self.describe(logits)

    def describe(self, logits: Any) -> str:
        return ("even", "odd")[int(logits.argmax())]

    def compare(self, logits: Any, reference: Any) -> str:
        return self.describe(logits)

    def answers(self, top_k: int, image_size: int) -> tuple[Answer, ...]:
        return (Answer("odd", Kind.UINT8, (1,)),)

    def is_right(self, answer: Mapping[str, Any], logits: Any, slack: float) -> bool:
        return bool(answer["odd"] == logits.argmax())


def test_a_new_task_is_a_class_and_a_line_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", {**TASKS, Parity.name: Parity()})
    described = Recipe.named("digits").model_dump()
    described["task"], described["backbone"]["num_classes"] = "parity", 2
    recipe = Recipe.model_validate(described)
    groups = labelled_images(recipe, preprocessing_of(recipe), 4)
    assert {int(label) for group in groups for label in group.labels} == {0, 1}
    scores = measure(_always_odd, recipe.task, recipe.backbone.num_classes, groups)
    assert scores.plain == [float(group.labels.mean()) for group in groups]
    assert scores.invariance == [0.0] * len(groups)
    facts = compare_scores(recipe.task, scores, scores, _count(groups))
    assert (facts.score, facts.metric) == ("share of right verdicts", "change of the verdict")
    assert tasks.ensemble_names() == ("classify", "segment", "judge")


def _always_odd(images: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.tile([0.0, 1.0], (len(images), 1))


def _count(groups: list[LabelledImages]) -> int:
    return len(groups[0].inputs)
