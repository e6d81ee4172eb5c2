"""The gate that a user sets: how much worse than its baseline an engine may be on the user's images.

A limit is METRIC=DROP, or METRIC@CONDITION=DROP for one condition: the name of a condition, or the strength of a local
scaling. A limit without a condition is for the unchanged images, and one on the measure of invariance is for every
strength of local scaling, because unchanged images have none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from pydantic import BaseModel, ConfigDict

from dec_export.errors import DataError
from dec_export.evaluation.conditions import Condition
from dec_export.evaluation.statistics import Interval, images_needed
from dec_export.parity.numbers import Number
from dec_export.tasks.scores import Metric

_LIMIT = re.compile(r"([a-z0-9]+)(?:@([^=]+))?=([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)")


class Verdict(str, Enum):
    """What the interval of a drop says about a limit."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "cannot tell"


@dataclass(frozen=True)
class Limit:
    """The largest drop of a metric that passes; `drop` is in the metric's own unit, so a share is in [0, 1].

    condition: the name of the condition, or the strength of the local scaling, that it is for; None is the usual one.
    """

    metric: Metric
    drop: float
    condition: str | None = None


class Judgement(BaseModel):
    """The verdict on one metric under one condition.

    drop, low, high: how much worse the engine is than its baseline, with its 95 % interval, in the metric's own unit;
    negative if it is better. needed: about how many images would decide, for a verdict of `UNDECIDED`; None if that
    cannot be estimated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    condition: str
    verdict: Verdict
    drop: Number
    low: Number
    high: Number
    limit: Number
    needed: int | None = None


def parse_limits(texts: Sequence[str], metrics: Sequence[Metric]) -> tuple[Limit, ...]:
    """Return the limits that texts such as "top1=0.5" state; limits of shares are in percentage points.

    Raises DataError for another text, and for a metric that is not among `metrics`.
    """
    return tuple(_parse(text, metrics) for text in texts)


def _parse(text: str, metrics: Sequence[Metric]) -> Limit:
    found = _LIMIT.fullmatch(text.strip().lower())
    names = ", ".join(metric.name for metric in metrics)
    if found is None:
        raise DataError(f"A limit must look like top1=0.5, a metric ({names}) and a number, found '{text}'.")
    metric = next((metric for metric in metrics if metric.name == found[1]), None)
    if metric is None:
        raise DataError(f"The limit '{text}' is on a metric that these data do not give, expected one of {names}.")
    return Limit(metric, float(found[3]) / (100 if metric.percent else 1), found[2])


def conditions_of(limit: Limit, conditions: Sequence[Condition], invariance: str) -> tuple[Condition, ...]:
    """Return the conditions under which a limit applies; `invariance` names the metric that only warps have.

    Raises DataError when there are none.
    """
    warps = limit.metric.name == invariance
    usual = [condition for condition in conditions if condition.warps == warps]
    if limit.condition is None:
        found = usual if warps else usual[:1]
    else:
        found = [condition for condition in conditions if _is_named(limit.condition, condition)]
        found = [condition for condition in found if condition.warps] if warps else found
    if not found:
        names = ", ".join(condition.name for condition in (usual if warps else conditions))
        where = f"the condition '{limit.condition}'" if limit.condition else "local scaling"
        raise DataError(
            f"The limit on {limit.metric.name} is for {where}, which is not evaluated, expected one of: "
            f"{names or 'a strength of local scaling (--strength)'}."
        )
    return tuple(found)


def _is_named(wanted: str, condition: Condition) -> bool:
    try:
        return condition.warps and float(wanted) == condition.strength
    except ValueError:
        return wanted == condition.name.lower()


def judge(limit: Limit, condition: str, interval: Interval, images: int) -> Judgement:
    """Compare the interval of a difference, engine minus baseline, with a limit.

    A difference that is not a number fails, because a metric of the engine or of its baseline is none.
    """
    better = limit.metric.higher_is_better
    drop = -interval.difference if better else interval.difference
    low, high = (-interval.high, -interval.low) if better else (interval.low, interval.high)
    verdict, needed = Verdict.UNDECIDED, None
    if high <= limit.drop:
        verdict = Verdict.PASSED
    elif low > limit.drop or math.isnan(drop):
        verdict = Verdict.FAILED
    else:
        needed = images_needed(images, Interval(drop, low, high), limit.drop)
    return Judgement(
        metric=limit.metric.name,
        condition=condition,
        verdict=verdict,
        drop=drop,
        low=low,
        high=high,
        limit=limit.drop,
        needed=needed,
    )


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on all limits: one that failed fails, and otherwise one that is undecided leaves it open."""
    found = set(verdicts)
    return next((one for one in (Verdict.FAILED, Verdict.UNDECIDED) if one in found), Verdict.PASSED)
