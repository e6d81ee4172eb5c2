"""Classification, which predicts one class for each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dec_export.tasks.base import Answer, Kind, LabelledPictures, Task, Warp
from dec_export.tasks.scores import Columns, Metric, Sums, mean_of

if TYPE_CHECKING:
    from dec_export.tasks.arrays import AnswerTensor, Array, Labels


class Classification(Task):
    """The task with logits (N, classes), measured by InvE and accuracy. A server returns the best classes in order."""

    name = "classification"
    metric = "InvE"
    score = "accuracy"
    has_label_names = True
    ensemble = "classify"

    def logits_shape(self, classes: int, image_size: int) -> tuple[int, ...]:
        return (classes,)

    def count_classes(self, kinds: int) -> int:
        return kinds

    def labels_of(self, pictures: LabelledPictures) -> Labels:
        return pictures.labels

    def scale_labels(self, labels: Labels, warp: Warp) -> Labels:
        """Return the labels unchanged, because a picture's class does not depend on its scale."""
        return labels

    def invariance_terms(self, logits: Array, logits_scaled: Array, warp: Warp) -> Array:
        """Return the terms of InvE, which does not depend on how the image was warped."""
        from dec_export.tasks import measures

        return measures.invariance_errors(logits, logits_scaled)

    def score_of(self, predicted: Labels, labels: Labels, classes: int) -> float:
        from dec_export.tasks import measures

        return measures.accuracy(predicted, labels)

    def image_columns(self, logits: Array, labels: Labels, ignored: int | None) -> Columns:
        """Return top1, top5, nll, confidence and predicted of each image; the first three are NaN without a label."""
        from dec_export.tasks import measures

        return measures.classification_columns(logits, labels)

    def metrics(self) -> tuple[Metric, ...]:
        from dec_export.tasks import measures

        calibration = Sums(measures.calibration_terms, measures.calibration_error_of_sums)
        return (
            Metric("top1", "top-1 accuracy", mean_of("top1"), column="top1"),
            Metric("top5", "top-5 accuracy", mean_of("top5"), column="top5"),
            Metric("nll", "negative log-likelihood", mean_of("nll"), False, False, "nll"),
            Metric("ece", "calibration error", measures.calibration_error, False, sums=calibration),
        )

    def caption(self, logits: Array) -> str:
        """Return the likeliest class and its probability."""
        import numpy as np

        return self.describe(logits) if np.isfinite(logits).all() else "not finite"

    def describe(self, logits: Array) -> str:
        from dec_export.tasks import measures

        return f"class {logits.argmax()} ({measures.softmax(logits[None]).max():.1%})"

    def compare(self, logits: Array, reference: Array) -> str:
        """Return the engine's class; a report shows the reference's class in the row above."""
        return self.describe(logits)

    def answers(self, top_k: int, image_size: int) -> tuple[Answer, ...]:
        kinds = {"classes": Kind.INT32, "labels": Kind.TEXT, "scores": Kind.FLOAT32}
        return tuple(Answer(name, kind, (top_k,)) for name, kind in kinds.items())

    def is_right(self, answer: Mapping[str, AnswerTensor], logits: Array, slack: float) -> bool:
        """Return whether the first class has the largest logit, and every score is the softmax of its class."""
        import numpy as np

        from dec_export.tasks import measures

        classes, scores = answer.get("classes"), answer.get("scores")
        if classes is None or scores is None or classes.shape != scores.shape or classes.ndim != 2:
            return False
        if not ((classes >= 0) & (classes < len(logits))).all():
            return False
        probabilities = measures.softmax(logits[None])[0]
        # A change of all logits by the slack changes a probability by no more than this share of it.
        right = np.abs(scores[0] - probabilities[classes[0]]) <= 1e-6 + 2 * slack * probabilities[classes[0]]
        return bool(right.all()) and measures.chooses_largest(classes[:, 0], logits, slack)
