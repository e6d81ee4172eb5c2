"""Segmentation, which predicts one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dec_export.errors import ServingError
from dec_export.tasks.base import Answer, Kind, LabelledPictures, Task, Warp
from dec_export.tasks.scores import Columns, Metric, its_own_sums

if TYPE_CHECKING:
    from dec_export.tasks.arrays import AnswerTensor, Array, Labels

# A served map has one byte for each pixel.
_MAX_SERVED_CLASSES = 256


class Segmentation(Task):
    """The task with logits (N, classes, H, W), measured by EqE and mIoU. A server returns a map of the best class."""

    name = "segmentation"
    metric = "EqE"
    score = "mIoU"
    recipe_suffix = "_segmentation"
    needs_head = True
    must_unwarp = True
    labels_pixels = True
    labels_every_object = True
    ensemble = "segment"

    def logits_shape(self, classes: int, image_size: int) -> tuple[int, ...]:
        return (classes, image_size, image_size)

    def count_classes(self, kinds: int) -> int:
        """Return one class more than kinds of objects, because the background is a class of its own."""
        return kinds + 1

    def labels_of(self, pictures: LabelledPictures) -> Labels:
        return pictures.masks

    def scale_labels(self, labels: Labels, warp: Warp) -> Labels:
        return warp.move_labels(labels)

    def invariance_terms(self, logits: Array, logits_scaled: Array, warp: Warp) -> Array:
        from dec_export.tasks import measures

        return measures.equivariance_errors(logits, logits_scaled, warp)

    def score_of(self, predicted: Labels, labels: Labels, classes: int) -> float:
        from dec_export.tasks import measures

        return measures.mean_iou(predicted, labels, classes)

    def image_columns(self, logits: Array, labels: Labels, ignored: int | None) -> Columns:
        """Return the intersections and unions of each class, and the right and counted pixels, of each image."""
        from dec_export.tasks import measures

        return measures.segmentation_columns(logits, labels, ignored)

    def metrics(self) -> tuple[Metric, ...]:
        from dec_export.tasks import measures

        miou, pixels, nll = (
            measures.miou_of_columns,
            measures.pixel_accuracy_of_columns,
            measures.pixel_nll_of_columns,
        )
        return (
            Metric("miou", "mIoU", miou, sums=its_own_sums(miou)),
            Metric("pixels", "pixel accuracy", pixels, sums=its_own_sums(pixels)),
            Metric("nll", "negative log-likelihood", nll, False, False, sums=its_own_sums(nll)),
        )

    def caption(self, logits: Array) -> str:
        """Return no caption, because the classes are drawn as a map."""
        return ""

    def describe(self, logits: Array) -> str:
        import numpy as np

        return f"{len(np.unique(logits.argmax(axis=0)))} classes"

    def compare(self, logits: Array, reference: Array) -> str:
        """Return the share of the pixels that have the reference's class."""
        from dec_export.tasks import measures

        return f"same class in {measures.top1_agreement(logits[None], reference[None]):.2%}"

    def class_map(self, logits: Array) -> Labels:
        classes: Labels = logits.argmax(axis=0)
        return classes

    def answers(self, top_k: int, image_size: int) -> tuple[Answer, ...]:
        return (Answer("class_map", Kind.UINT8, (image_size, image_size)),)

    def is_right(self, answer: Mapping[str, AnswerTensor], logits: Array, slack: float) -> bool:
        from dec_export.tasks import measures

        return measures.chooses_largest(answer.get("class_map"), logits, slack)

    def check_served(self, classes: int) -> None:
        if classes > _MAX_SERVED_CLASSES:
            raise ServingError(
                f"A class map has one byte for each pixel, and the model has {classes} classes, "
                f"more than {_MAX_SERVED_CLASSES}: serve its ONNX file with a postprocessing of your own."
            )
