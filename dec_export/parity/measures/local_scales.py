"""The measure of how much a classifier's prediction changes when every object changes its scale: `lscal_eq_error`.

Source: `local_scale_equivariance_testing` in the code of arXiv 2508.14187; docs/semantics.md, section 7. It needs
images whose objects can be drawn at any scale, so it is measured for recipes with digits (`parity.rescaled`).

It is the mean of a term of each image and copy, like InvE, and is gated by the same rule (`measures.means`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dec_export.formats import tolerance_of
from dec_export.parity import gate
from dec_export.parity.inputs import RescaledImages
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.measures.means import MeanParity, TermsOfReferences, mean_failures, mean_text
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Row
from dec_export.parity.runs import EngineRun, ReferenceRuns, Run
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array
from dec_export.tasks.measures import relative_changes

_NAME = "lscal_eq_error"
_BATCH = 16


class LocalScaleFacts(Frozen):
    """The metric of the references and of an engine over `images` images with `copies` copies of each.

    smallest, largest: the smallest and the largest scale of an object of a copy.
    """

    images: int
    copies: int
    smallest: Number
    largest: Number
    lscal_eq_error: MeanParity


class LocalScales(Section):
    """The metric, or None when no images of changing scales exist, or when the model labels pixels."""

    name: ClassVar[str] = "local_scales"
    heading: ClassVar[str | None] = "Objects at scales of their own"

    local_scales: LocalScaleFacts | None = None

    @property
    def measured(self) -> bool:
        """Whether the metric was measured."""
        return self.local_scales is not None

    def failures(self) -> list[str]:
        """Return a sentence if the engine's metric is not the reference's."""
        return [] if self.local_scales is None else mean_failures(_NAME, self.local_scales.lscal_eq_error)

    def rows(self) -> list[Row]:
        """Return both numbers, and the images that they belong to."""
        facts = self.local_scales
        if facts is None:
            return []
        scales = f"scales {number(facts.smallest, '.2f')} to {number(facts.largest, '.2f')}"
        images = f"{facts.images} images, {facts.copies} copies of each, {scales}"
        return [Row(_NAME, f"{mean_text(facts.lscal_eq_error)}; {images}")]


@dataclass(frozen=True)
class LocalScaleReference:
    """The images, and the references' terms, (N, K) float64 for N images with K copies of each."""

    images: RescaledImages
    terms: TermsOfReferences
    tolerance: float


class LocalScalesMeasure(Measure["LocalScaleReference | None", LocalScales]):
    """The measure of `lscal_eq_error`, for models with one prediction for an image.

    A map of predictions moves with the objects, and would change however good the model is.
    """

    section = LocalScales

    def reference(self, runs: ReferenceRuns) -> LocalScaleReference | None:
        """Return the terms of all three references, or None where the metric does not exist."""
        images, forms = runs.inputs.rescaled, runs.options.forms
        if images is None or task_named(runs.recipe.task).labels_pixels:
            return None
        fp64, fp32 = _terms(runs.fp64, images), _terms(runs.fp32, images)
        narrow = fp32 if runs.in_precision is runs.fp32 else _terms(runs.in_precision, images)
        tolerance = tolerance_of((forms.precision, forms.solver_precision))
        return LocalScaleReference(images, TermsOfReferences(fp64, fp32, narrow), tolerance)

    def judge(self, reference: LocalScaleReference | None, run: EngineRun) -> LocalScales:
        """Compare the engine's terms with those of the references."""
        if reference is None:
            return LocalScales()
        images = reference.images
        found = reference.terms.judge(_terms(run, images), reference.tolerance, gate.MAX_RATIO)
        facts = LocalScaleFacts(
            images=images.copies.shape[0],
            copies=images.copies.shape[1],
            smallest=float(images.scales.min()),
            largest=float(images.scales.max()),
            lscal_eq_error=found,
        )
        return LocalScales(local_scales=facts)


def _terms(run: Run, images: RescaledImages) -> Array:
    """Return the terms (N, K)."""
    count, copies = images.copies.shape[:2]
    here = run.predict(images.originals, _BATCH)
    there = run.predict(images.copies.reshape(-1, *images.copies.shape[2:]), _BATCH)
    return relative_changes(here, there.reshape(count, copies, -1))
