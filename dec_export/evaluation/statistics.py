"""The statistics of paired differences: two models on the same images.

Both models see the same images, so an image that is hard for one is hard for the other, and the interval of the
difference is narrower than those of the two metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray

from dec_export.tasks.arrays import Array
from dec_export.tasks.scores import Columns, Metric

# The quantile of the normal distribution for intervals that hold the truth in 95 % of evaluations.
_NORMAL = 1.959963984540054
RESAMPLES = 1000
# The largest number of indices that are drawn at once, which limits the memory.
_MAX_DRAWN = 1 << 22


@dataclass(frozen=True)
class Interval:
    """The difference of a metric between two models, ours minus theirs, with its 95 % confidence interval.

    p_value: the probability of so unequal disagreements if both models were equally often right (McNemar's exact test);
    None for metrics that are not shares of right images.
    """

    difference: float
    low: float
    high: float
    p_value: float | None = None


def paired_difference(metric: Metric, ours: Columns, theirs: Columns, seed: int = 0) -> Interval:
    """Return the difference of a metric between two models on the same images.

    Shares of right images have the interval of Agresti and Min (2005), which does not vanish when the models never
    disagree; all other metrics have the percentile interval of a paired bootstrap over images.
    """
    if metric.column is not None and _is_binary(ours[metric.column]) and _is_binary(theirs[metric.column]):
        return _of_shares(ours[metric.column], theirs[metric.column])
    difference = metric.compute(ours) - metric.compute(theirs)
    if metric.column is not None:
        found = _resampled_means(ours[metric.column] - theirs[metric.column], seed)
    else:
        found = _resampled(metric, ours, theirs, seed)
    low, high = np.quantile(found, [0.025, 0.975]) if np.isfinite(found).all() else (np.nan, np.nan)
    return Interval(difference, float(low), float(high))


def _is_binary(values: NDArray[Any]) -> bool:
    return len(values) > 0 and bool(np.isin(values, (0, 1)).all())


def _of_shares(ours: Array, theirs: Array) -> Interval:
    """Return the interval of a difference of two shares of the same images.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 24 (2005): half an image is added to each of the four cells. The p-value is McNemar's, with the exact
    binomial distribution.
    """
    from scipy.stats import binomtest

    count = len(ours)
    gained, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    more, less, total = gained + 0.5, lost + 0.5, count + 2
    centre = (more - less) / total
    half = _NORMAL * np.sqrt(max(0.0, (more + less) - (more - less) ** 2 / total)) / total
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Interval((gained - lost) / count, max(-1.0, centre - half), min(1.0, centre + half), p_value)


def _resampled_means(differences: Array, seed: int) -> NDArray[np.float64]:
    """Return the means of resampled differences, (RESAMPLES,)."""
    generator, count = np.random.default_rng(seed), len(differences)
    at_once = max(1, _MAX_DRAWN // max(1, count))
    means = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.integers(0, count, (min(at_once, RESAMPLES - start), count))
        means.append(differences[drawn].mean(axis=1))
    return np.concatenate(means)


def _resampled(metric: Metric, ours: Columns, theirs: Columns, seed: int) -> NDArray[np.float64]:
    """Return the differences of a metric on resampled images, (RESAMPLES,)."""
    generator = np.random.default_rng(seed)
    count = len(next(iter(ours.values())))
    found = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, count, count)
        found.append(metric.compute(_chosen(ours, drawn)) - metric.compute(_chosen(theirs, drawn)))
    return np.array(found)


def _chosen(columns: Columns, rows: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}


def images_needed(images: int, interval: Interval, limit: float) -> int | None:
    """Return about how many images tell whether a difference is beyond a limit; None if it lies on the limit.

    The half width of an interval falls with the square root of the number of images.
    """
    distance = abs(interval.difference - limit)
    half = (interval.high - interval.low) / 2
    if not distance > 0 or not np.isfinite(half):
        return None
    return int(np.ceil(images * (half / distance) ** 2))
