"""Distances between outputs, always against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from dec_export.parity.numbers import Number

Array = NDArray[np.floating[Any]]
Classes = NDArray[np.integer[Any]]

# Half the distance from 1 to the next float32: no float32 result is nearer to float64 than this, on average.
FLOAT32_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class OutputParity:
    """How far an engine's output is from float64, and how far the reference is in other formats.

    max_abs: largest absolute difference. rel_l2: 2-norm of the difference over the 2-norm of the float64 output, all
    samples together, so that the noisiest image decides. rel_l2_reference: that of the reference in the engine's own
    precision, which for float32 is rel_l2_reference_fp32. ratio: rel_l2 over the noise floor (`noise_floor`).
    typical_ratio: geometric mean over the samples of each one's own ratio, so that the quiet images decide.
    worst_sample, worst_sample_ratio: the sample whose own ratio is the largest, and that ratio.
    nonfinite: values that are NaN or infinite.
    """

    max_abs: Number
    rel_l2: Number
    max_abs_reference_fp32: Number
    rel_l2_reference_fp32: Number
    rel_l2_reference: Number
    ratio: Number
    typical_ratio: Number
    worst_sample: int
    worst_sample_ratio: Number
    nonfinite: int


def max_abs(found: Float[Array, "*shape"], truth: Float[Array, "*shape"]) -> float:
    """Largest |found - truth|; NaN when anything is NaN."""
    return float(np.abs(found.astype(np.float64) - truth).max())


def rel_l2(found: Float[Array, "*shape"], truth: Float[Array, "*shape"]) -> float:
    """|| found - truth ||_2 / || truth ||_2 in float64; NaN when anything is NaN."""
    return float(np.linalg.norm((found.astype(np.float64) - truth).ravel()) / np.linalg.norm(truth.ravel()))


def noise_floor(rel_l2_reference: float, unit_roundoff: float = FLOAT32_UNIT_ROUNDOFF) -> float:
    """The distance from float64 in some precision, but at least that precision's unit roundoff; NaN stays NaN."""
    return float(np.maximum(rel_l2_reference, unit_roundoff))


def compare(
    engine: Float[Array, "*shape"],
    reference_fp32: Float[Array, "*shape"],
    reference_fp64: Float[Array, "*shape"],
    reference: Float[Array, "*shape"] | None = None,
    unit_roundoff: float = FLOAT32_UNIT_ROUNDOFF,
) -> OutputParity:
    """Compare one output for the same samples.

    reference, unit_roundoff: of the engine's precision; by default float32's.
    """
    reference = reference_fp32 if reference is None else reference
    distance, floor = rel_l2(engine, reference_fp64), rel_l2(reference, reference_fp64)
    ratios = [
        noise_floor(rel_l2(e, truth), unit_roundoff) / noise_floor(rel_l2(r, truth), unit_roundoff)
        for e, r, truth in zip(engine, reference, reference_fp64, strict=True)
    ]
    with np.errstate(divide="ignore"):  # a reference that is infinite leaves ratios of zero; the gate fails on it
        typical = float(np.exp(np.mean(np.log(ratios))))
    worst = int(np.argmax(np.nan_to_num(ratios, nan=np.inf)))
    return OutputParity(
        max_abs=max_abs(engine, reference_fp64),
        rel_l2=distance,
        max_abs_reference_fp32=max_abs(reference_fp32, reference_fp64),
        rel_l2_reference_fp32=rel_l2(reference_fp32, reference_fp64),
        rel_l2_reference=floor,
        ratio=distance / noise_floor(floor, unit_roundoff),
        typical_ratio=typical,
        worst_sample=worst,
        worst_sample_ratio=ratios[worst],
        nonfinite=int(np.count_nonzero(~np.isfinite(engine))),
    )
