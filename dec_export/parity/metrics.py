"""Distances between outputs, always against float64."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# Half the distance from 1 to the next float32: no float32 result is nearer to float64 than this, on average.
FLOAT32_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class OutputParity:
    """How far an engine's output is from float64, and how far the float32 reference is.

    max_abs: largest absolute difference. rel_l2: 2-norm of the difference over the 2-norm of the float64 output, all
    samples together. ratio: rel_l2 over the noise floor (`noise_floor`). nonfinite: values that are NaN or infinite.
    """

    max_abs: float
    rel_l2: float
    max_abs_reference_fp32: float
    rel_l2_reference_fp32: float
    ratio: float
    nonfinite: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def max_abs(found: Array, truth: Array) -> float:
    """Largest |found - truth|; NaN when anything is NaN."""
    return float(np.abs(found.astype(np.float64) - truth).max())


def rel_l2(found: Array, truth: Array) -> float:
    """|| found - truth ||_2 / || truth ||_2 in float64; NaN when anything is NaN."""
    return float(np.linalg.norm((found.astype(np.float64) - truth).ravel()) / np.linalg.norm(truth.ravel()))


def noise_floor(rel_l2_reference_fp32: float) -> float:
    """The float32 reference's own distance from float64, but at least float32's unit roundoff."""
    return max(rel_l2_reference_fp32, FLOAT32_UNIT_ROUNDOFF)


def compare(engine: Array, reference_fp32: Array, reference_fp64: Array) -> OutputParity:
    """Compare one output; all arrays are (N, ...) for the same images."""
    distance, floor = rel_l2(engine, reference_fp64), rel_l2(reference_fp32, reference_fp64)
    return OutputParity(
        max_abs(engine, reference_fp64),
        distance,
        max_abs(reference_fp32, reference_fp64),
        floor,
        distance / noise_floor(floor),
        int(np.count_nonzero(~np.isfinite(engine))),
    )


def top1_agreement(logits: Array, truth: Array) -> float:
    """Share of samples whose largest logit has the same index."""
    return float((logits.argmax(axis=1) == truth.argmax(axis=1)).mean())


def softmax(logits: Array) -> Array:
    """Softmax over axis 1, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def invariance_error(logits: Array, logits_transformed: Array) -> float:
    """InvE: mean over images of || softmax M(x) - softmax M(S x) ||_2 (dec-semantics section 7)."""
    return float(np.linalg.norm(softmax(logits) - softmax(logits_transformed), axis=1).mean())
