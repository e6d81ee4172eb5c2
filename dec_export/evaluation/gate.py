"""The gate that a user sets: how much worse than its baseline an engine may be on the user's images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dec_export.errors import DataError
from dec_export.evaluation.statistics import Interval, images_needed
from dec_export.tasks.scores import Metric

_LIMIT = re.compile(r"([a-z0-9]+)=([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)")


class Verdict(str, Enum):
    """What the interval of a drop says about a limit."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "cannot tell"


@dataclass(frozen=True)
class Limit:
    """The largest drop of a metric that passes; `drop` is in the metric's own unit, so a share is in [0, 1]."""

    metric: Metric
    drop: float


@dataclass(frozen=True)
class Judgement:
    """The verdict on one metric under one condition.

    drop, low, high: how much worse the engine is than its baseline, with its 95 % interval, in the metric's own unit;
    negative if it is better. needed: about how many images would decide, for a verdict of `UNDECIDED`.
    """

    metric: str
    condition: str
    verdict: Verdict
    drop: float
    low: float
    high: float
    limit: float
    needed: int | None = None


def parse_limits(texts: Sequence[str], metrics: Sequence[Metric]) -> tuple[Limit, ...]:
    """Return the limits that texts such as "top1=0.5" state; limits of shares are in percentage points.

    Raises DataError for another text, and for a metric that the task does not have.
    """
    return tuple(_parse(text, metrics) for text in texts)


def _parse(text: str, metrics: Sequence[Metric]) -> Limit:
    found = _LIMIT.fullmatch(text.strip().lower())
    names = ", ".join(metric.name for metric in metrics)
    if found is None:
        raise DataError(f"A limit must look like top1=0.5, a metric ({names}) and a number, found '{text}'.")
    metric = next((metric for metric in metrics if metric.name == found[1]), None)
    if metric is None:
        raise DataError(f"Unknown metric '{found[1]}' in the limit '{text}', expected one of {names}.")
    return Limit(metric, float(found[2]) / (100 if metric.percent else 1))


def judge(limit: Limit, condition: str, interval: Interval, images: int) -> Judgement:
    """Compare the interval of a difference, engine minus baseline, with a limit."""
    better = limit.metric.higher_is_better
    drop = -interval.difference if better else interval.difference
    low, high = (-interval.high, -interval.low) if better else (interval.low, interval.high)
    verdict, needed = Verdict.UNDECIDED, None
    if high <= limit.drop:
        verdict = Verdict.PASSED
    elif low > limit.drop:
        verdict = Verdict.FAILED
    else:
        needed = images_needed(images, Interval(drop, low, high), limit.drop)
    return Judgement(limit.metric.name, condition, verdict, drop, low, high, limit.drop, needed)
