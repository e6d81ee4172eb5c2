"""The formulas of the tasks' scores and metrics, in NumPy; logits have their classes along axis 1."""

from __future__ import annotations

from typing import Any  # numbers of images have any dtype

import numpy as np
from jaxtyping import Float, Float64, Integer
from numpy.typing import NDArray

from dec_export.tasks.arrays import AnswerTensor, Array, Labels
from dec_export.tasks.base import Warp
from dec_export.tasks.scores import Columns


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


def classification_columns(
    logits: Float[Array, "samples classes"], labels: Integer[Labels, " samples"]
) -> dict[str, NDArray[Any]]:
    """Return the numbers of each image that an evaluation keeps.

    top1, top5: 1 if the label has one of the largest or of the five largest logits, else 0. nll: the negative logarithm
    of the label's softmax. These are NaN for a label of -1. confidence: the largest softmax. predicted: its class.
    A tie of logits is decided for the class of the smaller number. An image with a logit that is not finite is wrong,
    its nll and confidence are NaN, and its predicted class is -1.
    """
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    logits = np.where(finite[:, None], logits, 0)
    probabilities = softmax(logits)
    rows, known = np.arange(len(labels)), labels >= 0
    own = logits[rows, np.maximum(labels, 0)][:, None]
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, np.maximum(labels, 0)]
    return {
        "top1": np.where(known, finite & (rank < 1), np.nan),
        "top5": np.where(known, finite & (rank < 5), np.nan),
        "nll": np.where(known & finite, nll, np.nan),
        "confidence": np.where(finite, probabilities.max(axis=1), np.nan),
        "predicted": np.where(finite, logits.argmax(axis=1), -1),
    }


_BINS = 15


def calibration_error(columns: Columns) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy over 15 equal bins.

    Source: Guo et al., arXiv 1706.04599. It is NaN without images, without labels, and for logits that are not finite.
    """
    from torch import from_numpy
    from torchmetrics.functional.classification import binary_calibration_error

    confidence, right = columns["confidence"], columns["top1"]
    if not len(right) or not (np.isfinite(right) & np.isfinite(confidence)).all():
        return float("nan")
    # With the correctness as the target, the binary error is that of the most confident class.
    error = binary_calibration_error(
        from_numpy(np.ascontiguousarray(confidence)), from_numpy(right.astype(np.int64)), n_bins=_BINS
    )
    return float(error)


def calibration_terms(columns: Columns) -> dict[str, NDArray[Any]]:
    """Return, for each image, its confidence minus its correctness in the column of its bin, and a one that counts it.

    The calibration error follows from the sums: it adds up the absolute value of each bin's.
    """
    confidence, rows = columns["confidence"], np.arange(len(columns["confidence"]))
    gaps = np.zeros((len(rows), _BINS + 1))
    # As torchmetrics does, a confidence of exactly 1 has a bin of its own.
    gaps[rows, np.digitize(confidence, np.linspace(0, 1, _BINS + 1)) - 1] = confidence - columns["top1"]
    return {"gap": gaps, "counted": np.ones(len(rows))}


def calibration_error_of_sums(columns: Columns) -> float:
    """Return the expected calibration error of the sums of `calibration_terms`."""
    return float(np.abs(columns["gap"][0]).sum() / columns["counted"][0])


def segmentation_columns(
    logits: Float[Array, "samples classes height width"],
    labels: Integer[Labels, "samples height width"],
    ignored: int | None,
) -> dict[str, NDArray[Any]]:
    """Return the numbers of each image that an evaluation keeps.

    intersection, union: (N, classes) pixels that have a class in both maps, or in one of them. right, counted: the
    pixels whose class is right, and all that count. nll: the sum of the negative log-likelihoods of the latter. All but
    `counted` are NaN for an image with a logit that is not finite.
    """
    classes = logits.shape[1]
    finite = np.asarray(np.isfinite(logits).reshape(len(logits), -1).all(axis=1))
    found: dict[str, list[Any]] = {name: [] for name in ("intersection", "union", "right", "counted", "nll")}
    for one, truth in zip(np.where(finite[:, None, None, None], logits, 0), labels, strict=True):
        used = truth != ignored if ignored is not None else np.ones(truth.shape, bool)
        true, predicted = truth[used].astype(np.int64), one.argmax(axis=0)[used]
        confusion = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
        right = np.diagonal(confusion)
        likelihood = np.take_along_axis(softmax(one[None])[0], np.where(used, truth, 0)[None].astype(np.int64), 0)[0]
        found["intersection"].append(right)
        found["union"].append(confusion.sum(axis=0) + confusion.sum(axis=1) - right)
        found["right"].append(right.sum())
        found["counted"].append(confusion.sum())
        found["nll"].append(-np.log(np.maximum(likelihood[used], np.finfo(np.float64).tiny)).sum())
    columns = {name: np.asarray(values) for name, values in found.items()}
    return columns if finite.all() else {name: _only(finite, name, values) for name, values in columns.items()}


def _only(finite: NDArray[np.bool_], name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return a column with NaN for the images whose logits are not finite; these still count."""
    return values if name == "counted" else np.where(finite.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)


def iou_of_columns(columns: Columns) -> Float64[Array, " classes"]:
    """Return the intersection over union of each class over all pixels; it is NaN for a class that never occurs."""
    intersection, union = (columns[name].sum(axis=0).astype(np.float64) for name in ("intersection", "union"))
    with np.errstate(invalid="ignore"):
        return np.asarray(intersection / union)


def miou_of_columns(columns: Columns) -> float:
    """Return the mean, over the classes that occur, of |intersection| / |union| of all pixels."""
    found = iou_of_columns(columns)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def pixel_accuracy_of_columns(columns: Columns) -> float:
    """Return the share of the counted pixels whose class is right."""
    return _share_of(columns, "right")


def pixel_nll_of_columns(columns: Columns) -> float:
    """Return the mean negative log-likelihood of the counted pixels."""
    return _share_of(columns, "nll")


def _share_of(columns: Columns, name: str) -> float:
    counted = columns["counted"].sum()
    return float(columns[name].sum() / counted) if counted else float("nan")


def chooses_largest(found: AnswerTensor, logits: Array, slack: float) -> bool:
    """Return whether the logit of every chosen class is the largest one, or smaller by `slack` at most.

    found: classes (1, ...). logits: (classes, ...).
    """
    if found is None or found.shape != (1, *logits.shape[1:]) or not (found < len(logits)).all():
        return False
    chosen = np.take_along_axis(logits, found.astype(np.int64), axis=0) if logits.ndim > 1 else logits[found]
    return bool((logits.max(axis=0) - chosen <= slack).all())
