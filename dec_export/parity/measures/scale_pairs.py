"""The measure of how much the prediction changes between images of one scene at several scales: `eq_loss`.

Source: `calculate_eq_loss_eval` in the code of arXiv 2508.14187, which evaluates a multi-scale ImageNet with it;
docs/semantics.md, section 7. It is measured when the names of a proof's images follow that data set's naming
(`data.scale_pairs`), and needs no labels. The published program drops scenes that do not fill a last batch; here every
scene counts once.

It is the mean of a term of each scene and scale, like InvE, and is gated by the same rule (`measures.means`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dec_export.data.scale_pairs import LeftOut, ScaleGroups, group_by_scale
from dec_export.formats import tolerance_of
from dec_export.names import LOGITS
from dec_export.parity import gate
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.measures.means import MeanParity, TermsOfReferences, mean_failures, mean_text
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Curve, Curves, Figure, Row
from dec_export.parity.runs import EngineRun, ReferenceRuns
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array
from dec_export.tasks.measures import scale_distances

_NAME = "eq_loss"


class ScalePairsFacts(Frozen):
    """The distances between predictions at each scale and at scale 1, over `scenes` scenes.

    scales: the scales; the first is 1, whose distance is zero, and the others ascend. eq_loss: the mean over scenes and
    all scales; None without scenes. reference, engine: the mean distance at each scale, of the float64 reference and of
    the engine.
    """

    scenes: int
    left_out: LeftOut
    scales: tuple[float, ...]
    eq_loss: MeanParity | None
    reference: tuple[Number, ...]
    engine: tuple[Number, ...]


class ScalePairs(Section):
    """The distances, or None when the images are not scenes at several scales, or when the model labels pixels."""

    name: ClassVar[str] = "scale_pairs"
    heading: ClassVar[str | None] = "Scenes at several scales"

    scale_pairs: ScalePairsFacts | None = None

    @property
    def measured(self) -> bool:
        """Whether the images are scenes at several scales."""
        return self.scale_pairs is not None

    def failures(self) -> list[str]:
        """Return a sentence if the engine's mean distance is not the reference's."""
        facts = self.scale_pairs
        return [] if facts is None or facts.eq_loss is None else mean_failures(_NAME, facts.eq_loss)

    def rows(self) -> list[Row]:
        """Return both means, the distance at every scale, and the scenes that were left out."""
        return [] if self.scale_pairs is None else _rows(self.scale_pairs)

    def figures(self) -> list[Figure]:
        """Return the distance over the scales."""
        facts = self.scale_pairs
        return [] if facts is None or facts.eq_loss is None else [_figure(facts)]


def _rows(facts: ScalePairsFacts) -> list[Row]:
    mean = "not measured, because no scene is left" if facts.eq_loss is None else mean_text(facts.eq_loss)
    rows = [Row(_NAME, f"{mean}; {facts.scenes} scenes")]
    for scale, engine, reference in zip(facts.scales[1:], facts.engine[1:], facts.reference[1:], strict=True):
        text = f"engine {number(engine, '.6f')}, float64 reference {number(reference, '.6f')}"
        rows.append(Row(f"distance, scale {scale:g}", text))
    out = facts.left_out
    if out.count:
        reasons = (
            f"{out.without_scale_1} without an image of scale 1, {out.repeated_scale} with two images of one scale, "
            f"{out.other_scales} with other scales than most"
        )
        rows.append(Row("scenes left out", f"{out.count}: {reasons}"))
    return rows


def _figure(facts: ScalePairsFacts) -> Figure:
    order = sorted(range(len(facts.scales)), key=lambda i: facts.scales[i])

    def over_scales(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[i] for i in order)

    scales = over_scales(facts.scales)
    curves = (
        Curve("reference", "reference", scales, over_scales(facts.reference)),
        Curve("engine", "", scales, over_scales(facts.engine)),
    )
    alt = "Distance between the predictions at each scale and at scale 1; the numbers are below."
    y_label = "distance, lower is better"
    return Curves("scale_pairs", alt, curves, x_label="scale of the image", y_label=y_label, from_zero=True)


@dataclass(frozen=True)
class ScalePairsReference:
    """The scenes, and the references' terms, (scenes, scales) float64."""

    groups: ScaleGroups
    terms: TermsOfReferences
    tolerance: float


class ScalePairsMeasure(Measure["ScalePairsReference | None", ScalePairs]):
    """The measure of `eq_loss`, for models with one prediction for an image.

    A map of predictions scales with the scene, and would change however good the model is.
    """

    section = ScalePairs

    def reference(self, runs: ReferenceRuns) -> ScalePairsReference | None:
        """Return the terms of all three references, or None when there are no scenes at several scales."""
        groups, forms = group_by_scale(runs.inputs.images.names), runs.options.forms
        if not (len(groups) or groups.left_out.count) or task_named(runs.recipe.task).labels_pixels:
            return None
        found = runs.outputs
        terms = (_terms(outputs[LOGITS], groups) for outputs in (found.fp64, found.fp32, found.in_precision))
        tolerance = tolerance_of((forms.precision, forms.solver_precision))
        return ScalePairsReference(groups, TermsOfReferences(*terms), tolerance)

    def judge(self, reference: ScalePairsReference | None, run: EngineRun) -> ScalePairs:
        """Compare the engine's terms with those of the references."""
        if reference is None:
            return ScalePairs()
        groups, terms = reference.groups, reference.terms
        engine = _terms(run.outputs[LOGITS], groups)
        facts = ScalePairsFacts(
            scenes=len(groups),
            left_out=groups.left_out,
            scales=groups.scales,
            eq_loss=terms.judge(engine, reference.tolerance, gate.MAX_RATIO) if len(groups) else None,
            reference=_at_scales(terms.fp64),
            engine=_at_scales(engine),
        )
        return ScalePairs(scale_pairs=facts)


def _terms(logits: Array, groups: ScaleGroups) -> Array:
    """Return the terms (scenes, scales)."""
    if not len(groups):
        return np.empty((0, 0))
    return scale_distances(groups.arrange(logits))


def _at_scales(terms: Array) -> tuple[float, ...]:
    return tuple(terms.mean(axis=0).tolist()) if len(terms) else ()
