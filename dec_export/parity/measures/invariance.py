"""The measure of how much local changes of scale, which are equal for every engine, change a model's prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dec_export.formats import tolerance_of
from dec_export.names import LOGITS
from dec_export.parity import gate
from dec_export.parity.measures.base import Measure, Section
from dec_export.parity.measures.means import TermsOfReferences, mean_failures, mean_text
from dec_export.parity.numbers import Number
from dec_export.parity.presentation import Row
from dec_export.parity.runs import EngineRun, ReferenceRuns, Run
from dec_export.reference.warp import Phi, warp, warp_labels
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array, Labels
from dec_export.tasks.measures import equivariance_errors, invariance_errors

STRENGTH = 0.2
COARSE_RESOLUTION = 8


def local_scale_phi(count: int, seed: int | tuple[int, ...] = 0, strength: float = STRENGTH) -> Phi:
    """Return `count` warps with phi_x, phi_y ~ U(0, strength) and R = 8 (docs/semantics.md, section 7), float64."""
    generator = np.random.default_rng(seed)
    shape = (count, COARSE_RESOLUTION, COARSE_RESOLUTION - 1)
    return Phi(*(torch.from_numpy(generator.uniform(0, strength, shape)) for _ in range(2)))


def local_scale(
    image: NDArray[np.float32], seed: int | tuple[int, ...] = 0, strength: float = STRENGTH
) -> NDArray[np.float32]:
    """Warp images (N, C, H, W) by `local_scale_phi`.

    The warps are drawn and applied in float64, and the result is rounded once, so that every engine reads identical
    images.
    """
    phi = local_scale_phi(len(image), seed, strength)
    return warp(phi, torch.from_numpy(image).double()).float().numpy()


@dataclass(frozen=True)
class PhiWarp:
    """The warps of N images by `phi`, whose maps are (N, R, R-1), in the form that tasks take (`tasks.base.Warp`)."""

    phi: Phi

    def move_values(self, image: int, values: Array) -> Array:
        """Warp values (C, H, W) at the pixels of one image, in float64."""
        one = slice(image, image + 1)
        phi = Phi(self.phi.x[one].double(), self.phi.y[one].double())
        return warp(phi, torch.from_numpy(values[None].astype(np.float64)))[0].numpy()

    def move_labels(self, labels: Labels) -> Labels:
        """Warp the classes (N, H, W) of the pixels of all images; each pixel takes the class of the nearest pixel."""
        return warp_labels(self.phi, torch.from_numpy(labels)).numpy()


def invariance_of(task: str, logits: Array, logits_scaled: Array, phi: Phi) -> Array:
    """Return the term of each image in the task's metric, (N,) float64; `phi` warped the images to their copies."""
    return task_named(task).invariance_terms(logits, logits_scaled, PhiWarp(phi))


def invariance_error(logits: Array, logits_scaled: Array) -> float:
    """Return InvE, the mean of `invariance_errors` (arXiv 2508.14187; docs/semantics.md, section 7)."""
    return float(invariance_errors(logits, logits_scaled).mean())


def equivariance_error(logits: Array, logits_scaled: Array, phi: Phi) -> float:
    """Return EqE, the mean of `equivariance_errors` (arXiv 2508.14187; docs/semantics.md, section 7)."""
    return float(equivariance_errors(logits, logits_scaled, PhiWarp(phi)).mean())


@dataclass(frozen=True)
class InvarianceParity:
    """The metric of the float64 reference, of the float32 reference and of an engine, over equal images and warps.

    deviation: |engine - reference| / reference.
    noise: the deviation that rounding explains, which is the gate's factor times the mean over images of the change of
    the reference's term in the engine's precision.
    bound: the largest deviation that passes, which is the larger one of `tolerance` and `noise`.
    """

    metric: str
    seed: int
    strength: Number
    coarse_resolution: int
    reference: Number
    reference_fp32: Number
    engine: Number
    deviation: Number
    tolerance: Number
    noise: Number
    bound: Number
    within_tolerance: bool


@dataclass(frozen=True)
class InvarianceTerms:
    """Each image's term of the metric, (N,) float64, of the references in float64, float32 and engine precision."""

    metric: str
    seed: int
    strength: float
    fp64: Array
    fp32: Array
    in_precision: Array

    def judge(self, engine: Array, tolerance: float, factor: float) -> InvarianceParity:
        """Compare an engine's terms with those of the references."""
        found = TermsOfReferences(self.fp64, self.fp32, self.in_precision).judge(engine, tolerance, factor)
        return InvarianceParity(
            metric=self.metric,
            seed=self.seed,
            strength=self.strength,
            coarse_resolution=COARSE_RESOLUTION,
            reference=found.reference,
            reference_fp32=found.reference_fp32,
            engine=found.engine,
            deviation=found.deviation,
            tolerance=found.tolerance,
            noise=found.noise,
            bound=found.bound,
            within_tolerance=bool(found.deviation <= tolerance),
        )


class Invariance(Section):
    """InvE or EqE of the reference and of an engine.

    not_finite: sentences about outputs that hold NaN or infinity, for which the metric cannot be judged; they are not
    part of the JSON.
    """

    name: ClassVar[str] = "invariance"

    invariance: InvarianceParity
    not_finite: tuple[str, ...] = Field(default=(), exclude=True)

    def failures(self) -> list[str]:
        """Return the sentences about outputs that are not finite, or one if the metric is not the reference's."""
        return list(self.not_finite) or invariance_failures(self.invariance)

    def rows(self) -> list[Row]:
        """Return both numbers, and by how much they may differ."""
        return [Row(self.invariance.metric, mean_text(self.invariance))]


def invariance_failures(parity: InvarianceParity) -> list[str]:
    """Return a sentence if the engine's InvE or EqE is not the reference's, and none otherwise."""
    return mean_failures(parity.metric, parity)


@dataclass(frozen=True)
class InvarianceReference:
    """The terms of the references.

    tolerance: the deviation that always passes, even if rounding does not explain it.
    is_finite: whether the float64 reference's logits for the locally scaled copies are finite.
    """

    task: str
    terms: InvarianceTerms
    tolerance: float
    is_finite: bool


class InvarianceMeasure(Measure[InvarianceReference, Invariance]):
    """The measure of the task's metric on the images and their locally scaled copies."""

    section = Invariance

    def reference(self, runs: ReferenceRuns) -> InvarianceReference:
        """Return the terms of all three references."""
        task, forms = runs.recipe.task, runs.options.forms
        fp64, fp32, narrow = (_terms(task, run) for run in (runs.fp64, runs.fp32, runs.in_precision))
        terms = InvarianceTerms(task_named(task).metric, runs.inputs.seed, runs.inputs.strength, fp64, fp32, narrow)
        is_finite = bool(np.isfinite(runs.fp64.scaled[LOGITS]).all())
        return InvarianceReference(task, terms, tolerance_of((forms.precision, forms.solver_precision)), is_finite)

    def judge(self, reference: InvarianceReference, run: EngineRun) -> Invariance:
        """Compare the engine's terms with those of the references."""
        not_finite = [
            f"{name} holds NaN or infinity on the locally scaled images"
            for name, value in run.scaled.items()
            if not np.isfinite(value).all()
        ]
        if not reference.is_finite:
            not_finite.append("the float64 reference itself is not finite on these images")
        terms = _terms_at_choices(reference, run)
        found = terms.judge(_terms(reference.task, run), reference.tolerance, gate.MAX_RATIO)
        return Invariance(invariance=found, not_finite=tuple(not_finite))


def _terms_at_choices(reference: InvarianceReference, run: EngineRun) -> InvarianceTerms:
    """Return the references' terms, at the engine's choices if these are admissible and not those of float64."""
    images, scaled = run.truth, run.scaled_truth
    if images is run.reference and scaled is run.scaled_reference:
        return reference.terms
    fp64, fp32, narrow = (
        invariance_of(reference.task, here[LOGITS], there[LOGITS], run.inputs.phi)
        for here, there in zip(
            (images.fp64, images.fp32, images.in_precision),
            (scaled.fp64, scaled.fp32, scaled.in_precision),
            strict=True,
        )
    )
    return replace(reference.terms, fp64=fp64, fp32=fp32, in_precision=narrow)


def _terms(task: str, run: Run) -> Array:
    return invariance_of(task, run.outputs[LOGITS], run.scaled[LOGITS], run.inputs.phi)
