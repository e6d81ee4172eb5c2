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


def mean_iou(
    predicted: Integer[Labels, "*shape"], labels: Integer[Labels, "*shape"], classes: int, ignored: int | None = None
) -> float:
    """Return the mean, over the classes in either array, of |intersection| / |union| of all pixels; in [0, 1].

    Args:
        predicted, labels: classes from 0 to `classes` - 1.
        ignored: a value of `labels` whose pixels are left out, such as the background of the published evaluation; it
            may lie beyond the classes. NaN is returned when no pixel is left.
    """
    counted = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    if not counted.any():
        return float("nan")
    pairs = labels[counted].astype(np.int64) * classes + predicted[counted].astype(np.int64)
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    return float((intersection[union > 0] / union[union > 0]).mean())


def score_variances(scores: Float64[Array, "images copies"]) -> Float64[Array, " images"]:
    """Return the variance of each image's score over its copies: the mean squared distance from their mean.

    With the mIoU of copies whose objects have other scales, the mean over images is the published measure of
    consistency, in [0, 0.25]; a model that is good at every scale has 0.

    Source: `consistency_test_segmentation` in the code of arXiv 2508.14187; docs/semantics.md, section 7.
    """
    return np.asarray(scores.var(axis=1))


def relative_changes(
    logits: Float[Array, "images classes"], logits_copies: Float[Array, "images copies classes"]
) -> Float64[Array, "images copies"]:
    """Return || softmax M(x) - softmax M(x') ||_2 / || softmax M(x) ||_2 for each image x and each of its copies x'.

    With images whose objects all have scale 1, and copies whose objects have scales of their own, the mean over images
    and copies is the published `lscal_eq_error`.

    Source: `local_scale_equivariance_testing` in the code of arXiv 2508.14187; docs/semantics.md, section 7.

    Returns:
        Values in [0, sqrt(classes)], without a unit.
    """
    expected = softmax(logits)
    changes = _grouped_softmax(logits_copies) - expected[:, None]
    return np.asarray(np.linalg.norm(changes, axis=2) / np.linalg.norm(expected, axis=1)[:, None])


def scale_distances(logits: Float[Array, "groups scales classes"]) -> Float64[Array, "groups scales"]:
    """Return || softmax M(x_s) - softmax M(x_1) ||_2 for each group of images x_s that show one scene at each scale s.

    Scale 1 is the first of each group, so the first column is zero. It belongs to the published `eq_loss`, which is the
    mean over groups and all scales.

    Source: `calculate_eq_loss_eval` in the code of arXiv 2508.14187; docs/semantics.md, section 7.

    Returns:
        Values in [0, sqrt(2)], without a unit.
    """
    probabilities = _grouped_softmax(logits)
    return np.asarray(np.linalg.norm(probabilities - probabilities[:, :1], axis=2))


def accuracy_at_scales(
    logits: Float[Array, "groups scales classes"], labels: Integer[Labels, " groups"], k: int = 1
) -> Float64[Array, " scales"]:
    """Return, for each scale, the share of groups whose label is among the `k` largest logits.

    Of equal logits, that of the lower class is counted as the larger one. Fewer than `k` classes are all counted.

    Source: `per_scale_acc` in the code of arXiv 2508.14187, for k = 1 and 5; it gives the shares in percent.
    """
    own = np.take_along_axis(logits, labels[:, None, None].astype(np.int64), axis=2)
    earlier = np.arange(logits.shape[2]) < labels[:, None, None]
    better = (logits > own) | ((logits == own) & earlier)
    return np.asarray((better.sum(axis=2) < k).mean(axis=0))


def _grouped_softmax(logits: Float[Array, "groups members classes"]) -> Float64[Array, "groups members classes"]:
    return softmax(logits.reshape(-1, logits.shape[2])).reshape(logits.shape)


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
