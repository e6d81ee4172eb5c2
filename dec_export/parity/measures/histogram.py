"""The distribution of the distances of single values from float64, for the report's picture."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from dec_export.names import LOGITS
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.numbers import Number
from dec_export.parity.presentation import Figure, Histogram
from dec_export.parity.runs import EngineRun, ReferenceRuns
from dec_export.tasks.arrays import Array

_BINS_PER_DECADE = 4
_DECADES = (-12, 2)


class ErrorHistogram(Frozen):
    """Counts of log10(|value - float64| / rms of the float64 values) for an engine and for the float32 reference.

    edges: the edges of the bins, in decades.
    engine, reference_fp32: the counts in each bin; values beyond the edges are counted in the first or last bin.
    exact, exact_reference_fp32: the number of values that are equal to float64's.
    """

    edges: tuple[Number, ...]
    engine: tuple[int, ...]
    reference_fp32: tuple[int, ...]
    exact: int
    exact_reference_fp32: int


class Errors(Section):
    """The errors of single logits."""

    name: ClassVar[str] = "errors"
    heading: ClassVar[str | None] = "Errors"

    errors: ErrorHistogram

    def figures(self) -> list[Figure]:
        """Return the histogram, or no figure when no logit differs by a finite amount."""
        found = self.errors
        if not sum(found.engine) and not sum(found.reference_fp32):
            return []
        return [
            Histogram(
                "errors",
                "Histogram of the distances of single logits from float64",
                edges=tuple(10**edge for edge in found.edges),
                reference=found.reference_fp32,
                engine=found.engine,
                x_label="|logit - float64| / rms of the logits",
                y_label="share of the logits",
            )
        ]


def error_histogram(
    engine: Float[Array, "*shape"], reference_fp32: Float[Array, "*shape"], truth: Float[Array, "*shape"]
) -> ErrorHistogram:
    """Count the errors of an engine and of the float32 reference by their size."""
    edges = np.linspace(*_DECADES, (_DECADES[1] - _DECADES[0]) * _BINS_PER_DECADE + 1)
    rms = float(np.sqrt(np.mean(np.square(truth))))
    counts, exact = _count(engine, truth, rms, edges)
    counts_fp32, exact_fp32 = _count(reference_fp32, truth, rms, edges)
    return ErrorHistogram(
        edges=tuple(edges.tolist()),
        engine=counts,
        reference_fp32=counts_fp32,
        exact=exact,
        exact_reference_fp32=exact_fp32,
    )


def _count(values: Array, truth: Array, rms: float, edges: Array) -> tuple[tuple[int, ...], int]:
    difference = np.abs(values.astype(np.float64) - truth)
    off = difference[(difference > 0) & np.isfinite(difference)]
    with np.errstate(divide="ignore"):
        decades = np.clip(np.log10(off / rms), edges[0], edges[-1])
    counts, _ = np.histogram(decades, edges)
    return tuple(counts.tolist()), int(np.count_nonzero(difference == 0))


class ErrorsMeasure(Measure[None, Errors]):
    """The measure that counts the errors of single logits by their size."""

    section = Errors

    def reference(self, runs: ReferenceRuns) -> None:
        """Keep nothing."""

    def judge(self, reference: None, run: EngineRun) -> Errors:  # noqa: ARG002
        """Count the engine's errors."""
        truth = run.truth
        return Errors(errors=error_histogram(run.outputs[LOGITS], truth.fp32[LOGITS], truth.fp64[LOGITS]))
