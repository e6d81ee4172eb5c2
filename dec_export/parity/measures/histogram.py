"""How the distances of single values from float64 are spread, for the report's picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from dec_export.parity.metrics import Array

_BINS_PER_DECADE = 4
_DECADES = (-12, 2)


def error_histogram(engine: Array, reference_fp32: Array, truth: Array) -> dict[str, Any]:
    """Counts of log10(|value - float64| / rms of the float64 values), for an engine and for the float32 reference.

    edges: of the bins, in decades. exact, exact_reference_fp32: values that are equal to float64's. What lies beyond
    the edges is counted at them.
    """
    edges = np.linspace(*_DECADES, (_DECADES[1] - _DECADES[0]) * _BINS_PER_DECADE + 1)
    rms = float(np.sqrt(np.mean(np.square(truth))))
    counts, exact = _count(engine, truth, rms, edges)
    counts_fp32, exact_fp32 = _count(reference_fp32, truth, rms, edges)
    return {
        "edges": edges.tolist(),
        "engine": counts,
        "reference_fp32": counts_fp32,
        "exact": exact,
        "exact_reference_fp32": exact_fp32,
    }


def _count(values: Array, truth: Array, rms: float, edges: Array) -> tuple[list[int], int]:
    difference = np.abs(values.astype(np.float64) - truth)
    off = difference[(difference > 0) & np.isfinite(difference)]
    with np.errstate(divide="ignore"):
        decades = np.clip(np.log10(off / rms), edges[0], edges[-1])
    counts, _ = np.histogram(decades, edges)
    return counts.tolist(), int(np.count_nonzero(difference == 0))
