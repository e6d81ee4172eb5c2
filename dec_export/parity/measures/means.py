"""Means of terms, and the rule by which an engine's mean is judged.

A term is what a metric says about one image, or about an image and one copy of it. The metric is the mean of its terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from dec_export.parity.numbers import Number, number
from dec_export.tasks.arrays import Array


@runtime_checkable  # tests check types while they run
class Judged(Protocol):
    """A mean of the float64 reference and of an engine, how much they differ, and how much they may differ."""

    @property
    def reference(self) -> float:
        """The float64 reference's mean."""

    @property
    def engine(self) -> float:
        """The engine's mean."""

    @property
    def deviation(self) -> float:
        """|engine - reference| / reference."""

    @property
    def bound(self) -> float:
        """The largest deviation that passes."""


@dataclass(frozen=True)
class MeanParity:
    """A mean of the float64 reference, of the float32 reference and of an engine, over equal images.

    deviation: |engine - reference| / reference.
    noise: the deviation that rounding explains, which is the gate's factor times the mean of the change of the
    reference's terms in the engine's precision, over `reference`.
    bound: the largest deviation that passes, which is the larger one of `tolerance` and `noise`.
    """

    reference: Number
    reference_fp32: Number
    engine: Number
    deviation: Number
    tolerance: Number
    noise: Number
    bound: Number


@dataclass(frozen=True)
class TermsOfReferences:
    """The terms of the references in float64, in float32 and in the engine's precision; three arrays of one shape."""

    fp64: Array
    fp32: Array
    in_precision: Array

    def judge(self, engine: Array, tolerance: float, factor: float) -> MeanParity:
        """Compare the mean of an engine's terms with those of the references.

        Args:
            engine: the engine's terms, for the same images as those of the references.
            tolerance: the deviation that always passes, even if rounding does not explain it.
            factor: the multiple of the change by rounding that passes, which is `gate.MAX_RATIO`.
        """
        reference = float(self.fp64.mean())
        with np.errstate(invalid="ignore"):  # a number that is not finite fails the gate
            noise = factor * share(float(np.abs(self.in_precision - self.fp64).mean()), reference)
        return MeanParity(
            reference=reference,
            reference_fp32=float(self.fp32.mean()),
            engine=float(engine.mean()),
            deviation=share(abs(float(engine.mean()) - reference), reference),
            tolerance=tolerance,
            noise=noise,
            bound=float(np.maximum(tolerance, noise)),
        )


def share(difference: float, of: float) -> float:
    """Return `difference` / `of`; if `of` is zero, as for an exactly invariant model, return 0 for no difference."""
    if of:
        return difference / of
    return difference if not np.isfinite(difference) else (np.inf if difference else 0.0)


def mean_failures(metric: str, found: Judged) -> list[str]:
    """Return a sentence if the engine's mean is not the reference's, and none otherwise."""
    if not np.isfinite(found.deviation):
        return [f"{metric} cannot be judged: it is not finite"]
    if found.deviation <= found.bound:
        return []
    return [
        f"{metric} is {found.engine:.6g}, the reference's {found.reference:.6g}: they differ by "
        f"{found.deviation:.2%}, more than {found.bound:.2%}"
    ]


def mean_text(found: Judged) -> str:
    """Return both means, and by how much they may differ, in words."""
    return (
        f"engine {number(found.engine, '.6f')}, float64 reference {number(found.reference, '.6f')} (they differ by "
        f"{number(found.deviation, '.2%')}, allowed {number(found.bound, '.2%')})"
    )
