"""The choices of a discrete canonicalizer, and which other choices rounding explains.

A choice is discontinuous: if two candidates' scores are closer than rounding, a correct engine may choose the other
candidate, and its outputs differ by as much as the two warps do. Such an engine is judged by the references at its own
choice. See docs/numbers.md, "Choices near a tie".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dec_export.names import LOGITS, phi_names
from dec_export.parity.batches import Outputs
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.metrics import FLOAT32_UNIT_ROUNDOFF
from dec_export.tasks.arrays import Array

# The number of a choice that is none of the candidates.
NO_CANDIDATE = -1
# Engines return a candidate's steps as they are, or rounded to 16 bits on the way.
_SAME_STEPS = 1e-3


@dataclass(frozen=True)
class Choices:
    """The scores of all candidates for N images.

    scores: (N, K) float64, of the float64 reference.
    noise: how far a difference of two scores may be from float64's: the largest deviation of the float32 reference's
    scores, relative to that of the best candidate, over all images and candidates, and at least the unit roundoff of
    the largest score.
    candidates: the steps of every candidate, (K, 2, R, R-1), x before y.
    """

    scores: NDArray[np.float64]
    noise: float
    candidates: Array

    @property
    def best(self) -> NDArray[np.int64]:
        """The candidate that the float64 reference chooses for each image, (N,)."""
        best: NDArray[np.int64] = self.scores.argmax(axis=1)
        return best

    @property
    def gaps(self) -> NDArray[np.float64]:
        """How far each score is below the best one of its image, (N, K)."""
        gaps: NDArray[np.float64] = self.scores.max(axis=1, keepdims=True) - self.scores
        return gaps

    @property
    def admissible(self) -> NDArray[np.bool_]:
        """Which candidates a correct engine may choose, (N, K): those whose gap rounding explains, and the best."""
        with np.errstate(invalid="ignore"):
            allowed: NDArray[np.bool_] = self.gaps <= MAX_RATIO * self.noise
        allowed[np.arange(len(allowed)), self.best] = True
        return allowed

    @property
    def near_ties(self) -> NDArray[np.int64]:
        """The numbers of the images for which more than one candidate is admissible."""
        return np.flatnonzero(self.admissible.sum(axis=1) > 1)

    @property
    def smallest_gap(self) -> float:
        """The smallest gap of a second-best candidate; infinity for a single candidate."""
        if self.scores.shape[1] < 2:
            return np.inf
        return float(np.sort(self.gaps, axis=1)[:, 1].min())

    def alternatives(self) -> list[tuple[int, int]]:
        """Return the image and the candidate of every admissible choice that is not the best."""
        return [(int(i), int(c)) for i, c in np.argwhere(self.admissible) if c != self.best[i]]

    def recognised(self, outputs: Outputs) -> NDArray[np.int64] | None:
        """Return the candidate whose phi a model returned for each image, or None if it returned no phi."""
        names = phi_names(1)
        if any(name not in outputs for name in names):
            return None
        phi = np.stack([outputs[name].astype(np.float64) for name in names], axis=1)
        distances = np.abs(phi[:, None] - self.candidates[None]).max(axis=(2, 3, 4))
        nearest = np.nan_to_num(distances, nan=np.inf).argmin(axis=1)
        close = np.take_along_axis(distances, nearest[:, None], axis=1)[:, 0] <= _SAME_STEPS
        return np.where(close, nearest, NO_CANDIDATE)


def compare_scores(fp64: NDArray[np.float64], fp32: Array, candidates: Array) -> Choices:
    """Return the choices of the float64 reference, whose noise is that of the float32 reference's scores."""
    best = fp64.argmax(axis=1)[:, None]
    relative = [scores - np.take_along_axis(scores, best, axis=1) for scores in (fp64, fp32.astype(np.float64))]
    deviations = np.abs(relative[1] - relative[0])
    finite = np.isfinite(deviations) & np.isfinite(fp64)
    rounding = FLOAT32_UNIT_ROUNDOFF * np.abs(fp64).max(initial=0, where=finite)
    return Choices(fp64, float(max(deviations.max(initial=0, where=finite), rounding)), candidates)


@dataclass(frozen=True)
class Alternative:
    """The outputs of the references for one image at an admissible candidate that is not the best.

    image, candidate: the numbers of both. fp64, fp32, in_precision: the outputs, each without its first dimension.
    """

    image: int
    candidate: int
    fp64: Outputs
    fp32: Outputs
    in_precision: Outputs


def chosen(choices: Choices, alternatives: Sequence[Alternative], truth: Array, outputs: Outputs) -> list[int]:
    """Return the candidate at which a model is judged, for each image.

    truth: the logits of the float64 reference at its own choice, (N, ...).
    It is the candidate whose phi the model returned. A model that returns no phi is judged at the admissible candidate
    whose logits are nearest to its own.
    """
    recognised = choices.recognised(outputs)
    if recognised is not None:
        return list(map(int, recognised))
    found, logits = list(map(int, choices.best)), outputs[LOGITS]
    nearest = [_distance(logits[i], truth[i]) for i in range(len(found))]
    for other in alternatives:
        distance = _distance(logits[other.image], other.fp64[LOGITS])
        if distance < nearest[other.image]:
            found[other.image], nearest[other.image] = other.candidate, distance
    return found


def _distance(found: Array, truth: Array) -> float:
    return float(np.linalg.norm((found.astype(np.float64) - truth).ravel()))


def replaced(outputs: Outputs, rows: Sequence[tuple[int, Outputs]]) -> Outputs:
    """Return a copy of outputs in which the rows of some images are others; inner tensors may have fewer rows."""
    copies = {name: value.copy() for name, value in outputs.items()}
    for image, row in rows:
        for name, value in row.items():
            if name in copies and image < len(copies[name]):
                copies[name][image] = value
    return copies
