"""The comparison of a server's answer with that of the bundle's engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # tensors of an answer may have numbers of every format

import numpy as np
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.engines.base import Engine
from dec_export.names import LOGITS
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.measures.distances import Distances
from dec_export.parity.report import summary_of
from dec_export.tasks import Task

# The tolerance for a bundle without a proof is float32's, amplified as the published models amplify rounding errors.
_UNPROVED = 1e-2


def tolerance_of(bundle: Bundle) -> float:
    """Return the part of the largest logit by which two correct engines of this bundle may differ.

    The gate limits the distance of each from float64. Other batch sizes lead to another order of sums.
    """
    summary = summary_of(bundle)
    reports = [] if summary is None else summary.engines.values()
    floors = [report[Distances].outputs[LOGITS].rel_l2_reference for report in reports]
    known = [floor for floor in floors if np.isfinite(floor)]
    # The largest of many differences is several times their root mean square.
    return 4 * 2 * MAX_RATIO * max(known) if known else _UNPROVED


def expected_logits(engine: Engine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the engine's logits of one image (1, 3, H, W), which is repeated to fill the engine's smallest batch."""
    return engine(np.repeat(images, engine.smallest_batch, axis=0))["logits"][:1]


def distance(found: NDArray[Any] | None, expected: NDArray[Any]) -> float:
    """Return the largest difference divided by the largest expected value.

    It is infinite if the shapes differ or a value is not finite.
    """
    if found is None or found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def same_answer(task: Task, answer: Mapping[str, NDArray[Any] | None], logits: NDArray[Any], tolerance: float) -> bool:
    """Return whether an ensemble's answer for one image follows from its logits (classes, ...).

    If the logits of two classes differ by no more than the tolerance, both classes are accepted.
    """
    return task.is_right(answer, logits, tolerance * float(np.abs(logits).max()))
