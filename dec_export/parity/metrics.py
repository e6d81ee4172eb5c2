"""Distances between outputs, always against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Integer
from numpy.typing import NDArray

from dec_export.parity.numbers import Number
from dec_export.reference.warp import Phi, warp

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


def top1_agreement(
    logits: Float[Array, "samples classes *pixels"], truth: Float[Array, "samples classes *pixels"]
) -> float:
    """Share of samples, for segmentation of pixels, whose largest logit has the same index."""
    return float((logits.argmax(axis=1) == truth.argmax(axis=1)).mean())


def accuracy(predicted: Integer[Classes, "*shape"], labels: Integer[Classes, "*shape"]) -> float:
    """Share of equal classes."""
    return float((predicted == labels).mean())


def softmax(logits: Float[Array, "samples classes *pixels"]) -> Float64[Array, "samples classes *pixels"]:
    """Softmax over axis 1, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def invariance_errors(
    logits: Float[Array, "samples classes"], logits_scaled: Float[Array, "samples classes"]
) -> Float64[Array, " samples"]:
    """For each image || softmax M(x) - softmax M(S x) ||_2."""
    return np.asarray(np.linalg.norm(softmax(logits) - softmax(logits_scaled), axis=1))


def invariance_error(logits: Float[Array, "samples classes"], logits_scaled: Float[Array, "samples classes"]) -> float:
    """InvE: the mean of `invariance_errors` (arXiv 2508.14187; docs/semantics.md, section 7)."""
    return float(invariance_errors(logits, logits_scaled).mean())


def equivariance_error(
    logits: Float[Array, "samples classes h w"], logits_scaled: Float[Array, "samples classes h w"], phi: Phi
) -> float:
    """EqE: the mean of `equivariance_errors` (arXiv 2508.14187; docs/semantics.md, section 7)."""
    return float(equivariance_errors(logits, logits_scaled, phi).mean())


def equivariance_errors(
    logits: Float[Array, "samples classes h w"], logits_scaled: Float[Array, "samples classes h w"], phi: Phi
) -> Float64[Array, " samples"]:
    """For each image sqrt(sum((softmax(warp(phi, M(x))) - softmax(M(S x)))^2) / (H W)).

    logits, logits_scaled: of images and of their copies warped by `phi`, whose maps are (samples, R, R-1). The result
    is dimensionless, in [0, sqrt(2)]. Computed image by image: maps of logits are large.
    """
    errors = []
    for i, scaled in enumerate(logits_scaled):
        one = Phi(phi.x[i : i + 1].double(), phi.y[i : i + 1].double())
        expected = warp(one, torch.from_numpy(logits[i : i + 1].astype(np.float64))).numpy()
        distance = np.linalg.norm((softmax(expected) - softmax(scaled[None])).ravel())
        errors.append(distance / np.sqrt(scaled[0].size))
    return np.asarray(errors)


def mean_iou(predicted: Integer[Classes, "*shape"], labels: Integer[Classes, "*shape"], classes: int) -> float:
    """Mean, over the classes found in either array, of |intersection| / |union|, all pixels together; in [0, 1].

    predicted, labels: classes from 0 to `classes` - 1.
    """
    pairs = labels.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return float((intersection[union > 0] / union[union > 0]).mean())
