"""Distances of outputs from those of the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dec_export.parity.numbers import Number
from dec_export.tasks.arrays import Array

# Half of the distance from 1 to the next float32; on average, no float32 result is nearer to float64 than this.
FLOAT32_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class OutputParity:
    """The distance of an engine's output from float64, and that of the reference in other formats.

    max_abs: the largest absolute difference of the engine's output.
    rel_l2: the 2-norm of the difference over the 2-norm of the float64 output, over all samples together, so that the
    samples with the largest errors decide.
    max_abs_reference_fp32, rel_l2_reference_fp32: the same distances of the float32 reference.
    rel_l2_reference: rel_l2 of the reference in the engine's own precision.
    ratio: rel_l2 over the noise floor (`noise_floor`).
    typical_ratio: the geometric mean of the ratios of the single samples, so that samples with small errors count too.
    worst_sample, worst_sample_ratio: the number of the sample whose own ratio is the largest, and its ratio.
    nonfinite: the number of values that are NaN or infinite.
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
    """Return the largest |found - truth|; it is NaN when a value is NaN."""
    return float(np.abs(found.astype(np.float64) - truth).max())


def rel_l2(found: Float[Array, "*shape"], truth: Float[Array, "*shape"]) -> float:
    """Return || found - truth ||_2 / || truth ||_2 in float64; it is NaN when a value is NaN."""
    return float(np.linalg.norm((found.astype(np.float64) - truth).ravel()) / np.linalg.norm(truth.ravel()))


def noise_floor(rel_l2_reference: float, unit_roundoff: float = FLOAT32_UNIT_ROUNDOFF) -> float:
    """Return the reference's distance from float64, but at least the unit roundoff of its precision; NaN stays NaN."""
    return float(np.maximum(rel_l2_reference, unit_roundoff))


def compare(
    engine: Float[Array, "*shape"],
    reference_fp32: Float[Array, "*shape"],
    reference_fp64: Float[Array, "*shape"],
    reference: Float[Array, "*shape"] | None = None,
    unit_roundoff: float = FLOAT32_UNIT_ROUNDOFF,
) -> OutputParity:
    """Compare one output of an engine and of the references, which were computed for the same samples.

    reference: the output of the reference in the engine's precision; None means `reference_fp32`.
    unit_roundoff: the unit roundoff of the engine's precision.
    """
    reference = reference_fp32 if reference is None else reference
    distance, floor = rel_l2(engine, reference_fp64), rel_l2(reference, reference_fp64)
    ratios = [
        noise_floor(rel_l2(e, truth), unit_roundoff) / noise_floor(rel_l2(r, truth), unit_roundoff)
        for e, r, truth in zip(engine, reference, reference_fp64, strict=True)
    ]
    with np.errstate(divide="ignore"):  # an infinite reference gives ratios of zero, and the gate fails on it
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
