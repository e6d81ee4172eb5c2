"""The measure of how much the score of a segmentation depends on the scale of the objects: its consistency.

Source: `consistency_test_segmentation` in the code of arXiv 2508.14187; docs/semantics.md, section 7. It needs images
whose objects can be drawn at any scale, so it is measured for recipes with digits (`parity.rescaled`).

It is not gated. Like every score it counts pixels whose largest logit is right, so it jumps when two logits are nearly
equal, and no function of the noise floor bounds it. The logits that it is made of are gated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dec_export.parity.inputs import RescaledImages
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Curve, Curves, Figure, Row
from dec_export.parity.runs import EngineRun, ReferenceRuns, Run
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array, Labels
from dec_export.tasks.measures import score_variances

_BATCH = 16


@dataclass(frozen=True)
class ScoresOverScales:
    """The mean over images of the variance of each image's score over the scales, and of the score at each scale."""

    variance: Number
    scores: list[Number]


class ConsistencyFacts(Frozen):
    """The consistency of the float32 reference and of an engine over `images` images.

    score: the name of the task's score. scales: the scales of the objects.
    """

    score: str
    images: int
    scales: tuple[float, ...]
    reference: ScoresOverScales
    engine: ScoresOverScales


class Consistency(Section):
    """The consistency, or None when no images of changing scales exist, or when the model does not label pixels."""

    name: ClassVar[str] = "consistency"
    heading: ClassVar[str | None] = "Consistency over scales"

    consistency: ConsistencyFacts | None = None

    @property
    def measured(self) -> bool:
        """Whether the consistency was measured."""
        return self.consistency is not None

    def rows(self) -> list[Row]:
        """Return both variances, and the images that they belong to."""
        facts = self.consistency
        if facts is None:
            return []
        text = (
            f"engine {number(facts.engine.variance, '.6f')}, float32 reference "
            f"{number(facts.reference.variance, '.6f')}; {facts.images} images, each at scales "
            f"{', '.join(map(str, facts.scales))}"
        )
        return [Row(f"variance of {facts.score}", text)]

    def figures(self) -> list[Figure]:
        """Return the mean score of single images over the scales."""
        return [] if self.consistency is None else [_figure(self.consistency)]


def _figure(facts: ConsistencyFacts) -> Figure:
    curves = (
        Curve("reference", "reference", facts.scales, tuple(facts.reference.scores)),
        Curve("engine", "", facts.scales, tuple(facts.engine.scores)),
    )
    alt = f"Mean {facts.score} of {facts.images} images when all their objects have one scale, over that scale."
    y_label = f"{facts.score} of an image"
    return Curves("consistency", alt, curves, x_label="scale of the objects", y_label=y_label, percent=True)


@dataclass(frozen=True)
class ConsistencyReference:
    """The images, the number of classes, and the result of the float32 reference."""

    task: str
    classes: int
    images: RescaledImages
    found: ScoresOverScales


class ConsistencyMeasure(Measure["ConsistencyReference | None", Consistency]):
    """The measure of consistency, for models that label pixels; one image of a classifier has no score of its own."""

    section = Consistency

    def reference(self, runs: ReferenceRuns) -> ConsistencyReference | None:
        """Return the result of the float32 reference, or None where the measure does not exist."""
        recipe, images = runs.recipe, runs.inputs.rescaled
        if images is None or not task_named(recipe.task).labels_pixels:
            return None
        classes = recipe.backbone.num_classes
        return ConsistencyReference(recipe.task, classes, images, _found(runs.fp32, recipe.task, classes, images))

    def judge(self, reference: ConsistencyReference | None, run: EngineRun) -> Consistency:
        """Return the result of the engine beside that of the reference."""
        if reference is None:
            return Consistency()
        facts = ConsistencyFacts(
            score=task_named(reference.task).score,
            images=len(reference.images.copies),
            scales=tuple(reference.images.scales[0, :, 0].tolist()),
            reference=reference.found,
            engine=_found(run, reference.task, reference.classes, reference.images),
        )
        return Consistency(consistency=facts)


def _found(run: Run, task: str, classes: int, images: RescaledImages) -> ScoresOverScales:
    copies = images.copies.reshape(-1, *images.copies.shape[2:])
    predicted = run.predict(copies, _BATCH).argmax(axis=1).reshape(images.labels.shape)
    scores = scores_of_images(task, predicted, images.labels, classes)
    return ScoresOverScales(float(score_variances(scores).mean()), scores.mean(axis=0).tolist())


def scores_of_images(task: str, predicted: Labels, labels: Labels, classes: int) -> Array:
    """Return the task's score of each single image and copy, (N, K) float64; classes and labels are (N, K, H, W)."""
    score_of = task_named(task).score_of
    pairs = zip(predicted, labels, strict=True)
    return np.array([[score_of(*one, classes) for one in zip(p, t, strict=True)] for p, t in pairs], np.float64)
