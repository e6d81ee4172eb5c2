"""The images of a proof, and the measure of a model's score at every scale if the images have labels.

Images have labels if the recipe's `evaluation` names a data set that has them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dec_export.data.digits import compose, source_digits
from dec_export.data.images import ImageSet, Preprocessing, load_images
from dec_export.parity.inputs import LabelledImages
from dec_export.parity.measures.base import Frozen, Header, Measure, Section
from dec_export.parity.measures.invariance import PhiWarp, invariance_of, local_scale, local_scale_phi
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Curve, Curves, Figure, Line, Table, Whose
from dec_export.parity.runs import EngineRun, ReferenceRuns, Run
from dec_export.recipe.model import Recipe
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array

SCALES = (0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
IMAGES_PER_SCALE = 50
SEED = 11
_BATCH = 25

Predict = Callable[[NDArray[np.float32]], Array]


def evaluation_images(recipe: Recipe, preprocessing: Preprocessing, count: int, folder: Path | None) -> ImageSet:
    """Return the first images of the folder or, without one, test images of the recipe's data set or photographs."""
    if folder is not None or not has_labels(recipe):
        return load_images(preprocessing, count, folder)
    inputs = compose(source_digits("test"), count, SEED).inputs(preprocessing.mean, preprocessing.std)
    names = tuple(f"digits_{i}" for i in range(count))
    return ImageSet(names, inputs, "handwritten digits shipped with scikit-learn, at scales of their own")


def has_labels(recipe: Recipe) -> bool:
    """Return whether the recipe names a data set with labels that is installed here."""
    return recipe.evaluation.data == "digits" and importlib.util.find_spec("sklearn") is not None


def labelled_images(
    recipe: Recipe, preprocessing: Preprocessing, count: int = IMAGES_PER_SCALE
) -> list[LabelledImages]:
    """Return `count` test images at every scale of `SCALES`, or none without labels or without the data set."""
    if not has_labels(recipe):
        return []
    digits, task = source_digits("test"), task_named(recipe.task)
    found = []
    for i, scale in enumerate(SCALES):
        images = compose(digits, count, (SEED, i), scale=scale, every=task.labels_every_object)
        inputs = images.inputs(preprocessing.mean, preprocessing.std)
        seed, strength = (SEED, i, 1), recipe.evaluation.strength
        phi = local_scale_phi(count, seed, strength)
        labels = task.labels_of(images)
        moved = task.scale_labels(labels, PhiWarp(phi))
        found.append(LabelledImages(scale, inputs, labels, local_scale(inputs, seed, strength), moved, phi))
    return found


@dataclass(frozen=True)
class Scores:
    """The results of a model at every scale: its score, its score on the locally scaled copies, and the metric."""

    plain: list[Number]
    locally_scaled: list[Number]
    invariance: list[Number]


def measure(predict: Predict, task: str, classes: int, groups: Sequence[LabelledImages]) -> Scores:
    """Return the task's scores of the logits (N, classes, ...) that `predict` gives for each group of images."""
    scores, score_of = Scores([], [], []), task_named(task).score_of
    for group in groups:
        here, there = predict(group.inputs), predict(group.scaled)
        scores.plain.append(score_of(here.argmax(axis=1), group.labels, classes))
        scores.locally_scaled.append(score_of(there.argmax(axis=1), group.labels_scaled, classes))
        scores.invariance.append(float(invariance_of(task, here, there, group.phi).mean()))
    return scores


class LabelledFacts(Frozen):
    """The scores of the float32 reference and of an engine.

    score, metric: the names of the task's score and metric.
    """

    score: str
    metric: str
    images_per_scale: int
    scales: tuple[float, ...]
    reference: Scores
    engine: Scores


def compare_scores(task: str, reference: Scores, engine: Scores, images_per_scale: int) -> LabelledFacts:
    """Return the scores of the reference and of an engine in the form of a report."""
    return LabelledFacts(
        score=task_named(task).score,
        metric=task_named(task).metric,
        images_per_scale=images_per_scale,
        scales=SCALES,
        reference=reference,
        engine=engine,
    )


class Labelled(Section):
    """The scores of the reference and of an engine at every scale; None when the images have no labels."""

    name: ClassVar[str] = "scales"
    heading: ClassVar[str | None] = "Scales"

    labelled: LabelledFacts | None

    def tables(self, header: Header) -> list[Table]:  # noqa: ARG002 it needs nothing of the header
        """Return the scores at every scale."""
        return [] if self.labelled is None else [_table(self.labelled)]

    def figures(self) -> list[Figure]:
        """Return the scores and the task's metric over the scales."""
        return [] if self.labelled is None else _figures(self.labelled)


def _table(facts: LabelledFacts) -> Table:
    rows = [
        (f"{what}, {who}", *(number(value, form) for value in values))
        for what, form, key in (
            (facts.score, ".1%", "plain"),
            (f"{facts.score}, locally scaled", ".1%", "locally_scaled"),
            (facts.metric, ".4f", "invariance"),
        )
        for who, values in (
            ("float32 reference", getattr(facts.reference, key)),
            ("engine", getattr(facts.engine, key)),
        )
    ]
    title = f"At every scale, {facts.images_per_scale} images each"
    return Table(title, ("", *map(str, facts.scales)), tuple(rows))


def _figures(facts: LabelledFacts) -> list[Figure]:
    def curve(whose: Whose, label: str, values: list[float], line: Line = "own") -> Curve:
        return Curve(whose, label, facts.scales, tuple(values), line)

    reference, engine = facts.reference, facts.engine
    scores = (
        curve("reference", "reference", reference.plain, "solid"),
        curve("engine", "", engine.plain, "solid"),
        curve("reference", "reference, locally scaled", reference.locally_scaled, "dashed"),
        curve("engine", ", locally scaled", engine.locally_scaled, "dashed"),
    )
    metric = (curve("reference", "reference", reference.invariance), curve("engine", "", engine.invariance))
    axis = "scale of the objects"
    numbers = "at every scale; the numbers are in the table."
    return [
        Curves("scores", f"{facts.score} {numbers}", scores, x_label=axis, y_label=facts.score, percent=True),
        Curves(
            "invariance",
            f"{facts.metric} {numbers}",
            metric,
            x_label=axis,
            y_label=f"{facts.metric}, lower is better",
            from_zero=True,
        ),
    ]


@dataclass(frozen=True)
class LabelledReference:
    """The labelled images, and the scores of the float32 reference on them."""

    task: str
    classes: int
    groups: tuple[LabelledImages, ...]
    scores: Scores


class LabelledMeasure(Measure["LabelledReference | None", Labelled]):
    """The measure of a model's scores on labelled images, if there are any."""

    section = Labelled

    def reference(self, runs: ReferenceRuns) -> LabelledReference | None:
        """Return the scores of the float32 reference, or None without labelled images."""
        recipe, groups = runs.recipe, runs.inputs.labelled
        if not groups:
            return None
        classes = recipe.backbone.num_classes
        return LabelledReference(recipe.task, classes, groups, _scores(runs.fp32, recipe.task, classes, groups))

    def judge(self, reference: LabelledReference | None, run: EngineRun) -> Labelled:
        """Return the scores of the engine."""
        if reference is None:
            return Labelled(labelled=None)
        engine = _scores(run, reference.task, reference.classes, reference.groups)
        count = len(reference.groups[0].inputs)
        return Labelled(labelled=compare_scores(reference.task, reference.scores, engine, count))


def _scores(run: Run, task: str, classes: int, groups: Sequence[LabelledImages]) -> Scores:
    return measure(lambda images: run.predict(images, _BATCH), task, classes, groups)
