"""The two supervised tasks: an image has one label, or every pixel has its own.

Classification predicts the class of the labelled digit, which stands among two others. The loss is the cross-entropy of
images and of their locally scaled copies, plus the symmetric divergence between the two predictions.

Segmentation predicts the class of every pixel, with background as a class. The loss is the cross-entropy, in which
background counts 0.3, plus the divergence at every pixel between the prediction for the scaled copy and the prediction
for the image, which is scaled likewise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dec_export.data.digits import CLASSES, DigitImages
from dec_export.parity.measures.invariance import equivariance_error
from dec_export.reference.warp import Phi, warp, warp_labels
from dec_export.tasks.measures import mean_iou

BACKGROUND_WEIGHT = 0.3


class Sizes(NamedTuple):
    """How many images a step takes, a test takes, and the test at each scale takes."""

    batch: int
    test_images: int
    images_per_scale: int


class Scores(NamedTuple):
    """What is measured on images and their locally scaled copies.

    score: accuracy or mIoU of the images. score_scaled: the same of the copies. distance: how far the predictions are
    from invariant (InvE) or equivariant (EqE).
    """

    score: float
    score_scaled: float
    distance: float


class SupervisedTask(ABC):
    """What depends on whether an image has one label or every pixel has its own.

    score_key, distance_key: keys of the measures in JSON. score_title, distance_title: their names in tables.
    runs: names of the runs that are trained. sizes: usual numbers of images. backbone_steps: usual steps of the
    backbone. steps: usual steps of each later run. all_digits_scaled: whether, in the test at one scale, all digits of
    an image have that scale; otherwise only the labelled digit has it.
    """

    score_key: ClassVar[str]
    distance_key: ClassVar[str]
    score_title: ClassVar[str]
    distance_title: ClassVar[str]
    runs: ClassVar[tuple[str, ...]]
    sizes: ClassVar[Sizes]
    backbone_steps: ClassVar[int]
    steps: ClassVar[int]
    all_digits_scaled: ClassVar[bool]

    @abstractmethod
    def labels(self, images: DigitImages) -> Tensor:
        """The labels int64, (B,) or (B, H, W)."""

    @abstractmethod
    def scaled_labels(self, phi: Phi, labels: Tensor) -> Tensor:
        """The labels of the copies that are warped by phi."""

    @abstractmethod
    def equivariance_loss(self, phi: Phi, logits: Tensor, logits_scaled: Tensor) -> Tensor:
        """The equivariance loss, a scalar, from the logits of images and of their copies warped by phi."""

    @abstractmethod
    def measure(self, logits: Tensor, logits_scaled: Tensor, labels: Tensor, phi: Phi) -> Scores:
        """The scores, rounded to four decimals, from the logits of images and of their copies warped by phi."""

    def class_weights(self) -> Tensor | None:
        """The weights of the classes in the cross-entropy; None weighs all alike."""
        return None

    def scores_as_json(self, scores: Scores) -> dict[str, float]:
        """The scores under this task's keys."""
        return {
            self.score_key: scores.score,
            f"{self.score_key}_locally_scaled": scores.score_scaled,
            self.distance_key: scores.distance,
        }


class Classification(SupervisedTask):
    """Every image has one label. The score is the accuracy, the distance is InvE."""

    score_key, distance_key = "accuracy", "inv_e"
    score_title, distance_title = "accuracy", "InvE"
    runs = ("backbone", "plain", "augmented", "consistent", "dec")
    sizes = Sizes(batch=128, test_images=4000, images_per_scale=800)
    backbone_steps = steps = 2000
    all_digits_scaled = False

    def labels(self, images: DigitImages) -> Tensor:
        return torch.from_numpy(images.labels)

    def scaled_labels(self, phi: Phi, labels: Tensor) -> Tensor:  # noqa: ARG002
        return labels

    def equivariance_loss(self, phi: Phi, logits: Tensor, logits_scaled: Tensor) -> Tensor:  # noqa: ARG002
        return divergence(logits, logits_scaled)

    def measure(self, logits: Tensor, logits_scaled: Tensor, labels: Tensor, phi: Phi) -> Scores:  # noqa: ARG002
        probabilities, scaled = logits.softmax(dim=1), logits_scaled.softmax(dim=1)
        distance = round(float((probabilities - scaled).norm(dim=1).mean()), 4)
        return Scores(_accuracy(probabilities, labels), _accuracy(scaled, labels), distance)


class Segmentation(SupervisedTask):
    """Every pixel has a label. The score is mIoU over all classes, the distance is EqE."""

    score_key, distance_key = "mean_iou", "eq_e"
    score_title, distance_title = "mIoU", "EqE"
    runs = ("backbone", "plain", "consistent", "dec")
    sizes = Sizes(batch=64, test_images=1000, images_per_scale=400)
    backbone_steps, steps = 1100, 800
    all_digits_scaled = True

    def labels(self, images: DigitImages) -> Tensor:
        return torch.from_numpy(images.masks.astype(np.int64))

    def scaled_labels(self, phi: Phi, labels: Tensor) -> Tensor:
        return warp_labels(phi, labels)

    def equivariance_loss(self, phi: Phi, logits: Tensor, logits_scaled: Tensor) -> Tensor:
        return divergence(warp(Phi(phi.x.float(), phi.y.float()), logits), logits_scaled)

    def measure(self, logits: Tensor, logits_scaled: Tensor, labels: Tensor, phi: Phi) -> Scores:
        distance = round(equivariance_error(logits.numpy(), logits_scaled.numpy(), phi), 4)
        return Scores(_mean_iou(logits, labels), _mean_iou(logits_scaled, self.scaled_labels(phi, labels)), distance)

    def class_weights(self) -> Tensor:
        # Nine tenths of the pixels are background.
        return torch.tensor([*[1.0] * CLASSES, BACKGROUND_WEIGHT])


TASKS: dict[str, SupervisedTask] = {"classification": Classification(), "segmentation": Segmentation()}


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """Half the symmetric Kullback-Leibler divergence of the softmaxes of two logits (B, classes, ...).

    The result is a scalar, the mean over images and places.
    """
    log_a, log_b = a.log_softmax(dim=1), b.log_softmax(dim=1)
    return ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(dim=1).mean() / 2


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return round(float((probabilities.argmax(dim=1) == labels).float().mean()), 4)


def _mean_iou(logits: Tensor, labels: Tensor) -> float:
    return round(mean_iou(logits.argmax(dim=1).numpy(), labels.numpy(), CLASSES + 1), 4)
