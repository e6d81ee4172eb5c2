"""The formulas of the tasks' scores and metrics, in NumPy; logits have their classes along axis 1."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Integer

from dec_export.tasks.arrays import AnswerTensor, Array, Labels
from dec_export.tasks.base import Warp


def softmax(logits: Float[Array, "samples classes *pixels"]) -> Float64[Array, "samples classes *pixels"]:
    """Return the softmax over axis 1, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def top1_agreement(
    logits: Float[Array, "samples classes *pixels"], truth: Float[Array, "samples classes *pixels"]
) -> float:
    """Return the share of places, which are images or pixels, where the largest logit has the same index."""
    return float((logits.argmax(axis=1) == truth.argmax(axis=1)).mean())


def accuracy(predicted: Integer[Labels, "*shape"], labels: Integer[Labels, "*shape"]) -> float:
    """Return the share of equal classes."""
    return float((predicted == labels).mean())


def mean_iou(predicted: Integer[Labels, "*shape"], labels: Integer[Labels, "*shape"], classes: int) -> float:
    """Return the mean, over the classes in either array, of |intersection| / |union| of all pixels; in [0, 1].

    predicted, labels: classes from 0 to `classes` - 1.
    """
    pairs = labels.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return float((intersection[union > 0] / union[union > 0]).mean())


def invariance_errors(
    logits: Float[Array, "samples classes"], logits_scaled: Float[Array, "samples classes"]
) -> Float64[Array, " samples"]:
    """Return the terms of InvE: || softmax M(x) - softmax M(S x) ||_2 for each image x and its locally scaled copy S x.

    Source: arXiv 2508.14187; docs/semantics.md, section 7.

    Args:
        logits, logits_scaled: the logits of the images and of their copies.
    """
    return np.asarray(np.linalg.norm(softmax(logits) - softmax(logits_scaled), axis=1))


def equivariance_errors(
    logits: Float[Array, "samples classes height width"],
    logits_scaled: Float[Array, "samples classes height width"],
    warp: Warp,
) -> Float64[Array, " samples"]:
    """Return the terms of EqE: sqrt(sum((softmax(warp(phi, M(x))) - softmax(M(S x)))^2) / (H W)) for each image x.

    Source: arXiv 2508.14187; docs/semantics.md, section 7. They are computed image by image, because maps of logits are
    large.

    Args:
        logits, logits_scaled: the logits of the images and of their copies.
        warp: the warps that made the copies.

    Returns:
        Values in [0, sqrt(2)], without a unit.
    """
    errors = []
    for i, scaled in enumerate(logits_scaled):
        expected = warp.move_values(i, logits[i])
        distance = np.linalg.norm((softmax(expected[None]) - softmax(scaled[None])).ravel())
        errors.append(distance / np.sqrt(scaled[0].size))
    return np.asarray(errors)


def chooses_largest(found: AnswerTensor, logits: Array, slack: float) -> bool:
    """Return whether the logit of every chosen class is the largest one, or smaller by `slack` at most.

    found: classes (1, ...). logits: (classes, ...).
    """
    if found is None or found.shape != (1, *logits.shape[1:]) or not (found < len(logits)).all():
        return False
    chosen = np.take_along_axis(logits, found.astype(np.int64), axis=0) if logits.ndim > 1 else logits[found]
    return bool((logits.max(axis=0) - chosen <= slack).all())
