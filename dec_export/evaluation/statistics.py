"""The statistics of paired differences: two models on the same images.

Both models see the same images, so an image that is hard for one is hard for the other, and the interval of the
difference is narrower than those of the two metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray

from dec_export.tasks.arrays import Array
from dec_export.tasks.scores import Columns, Metric

# The quantile of the normal distribution for intervals that hold the truth in 95 % of evaluations.
_NORMAL = 1.959963984540054
RESAMPLES = 2000
# With fewer images, resampling says nothing about the spread: the interval is then infinite.
FEWEST_IMAGES = 10
# The largest number of indices that are drawn at once, which limits the memory.
_MAX_DRAWN = 1 << 22


@dataclass(frozen=True)
class Interval:
    """The difference of a metric between two models, ours minus theirs, with its 95 % confidence interval.

    difference, low, high: in the metric's own unit; the interval is infinite with too few images, and all three are NaN
    when a model's metric is.
    p_value: the probability of disagreements at least as unequal if both models were equally often right (McNemar's
    exact test); None for metrics that are not shares of right images.
    """

    difference: float
    low: float
    high: float
    p_value: float | None = None


def paired_difference(metric: Metric, ours: Columns, theirs: Columns, seed: int = 0) -> Interval:
    """Return the difference of a metric between two models on the same images.

    Shares of right images have the interval of Agresti and Min (2005), which does not vanish when the models never
    disagree. All others have the interval of a paired bootstrap over images, widened for few images (Hesterberg 2015):
    means the percentile interval, and metrics that are not means the pivotal one.
    """
    difference = metric.compute(ours) - metric.compute(theirs)
    if not math.isfinite(difference):
        return Interval(math.nan, math.nan, math.nan)
    if metric.is_share_of_images and metric.column is not None:
        return _of_shares(ours[metric.column], theirs[metric.column])
    count = _count(ours)
    if count < FEWEST_IMAGES:
        return Interval(difference, -math.inf, math.inf)
    if metric.column:
        found = _resampled_means(metric.column, ours, theirs, seed)
    else:
        # These metrics may be biased on few images, as the calibration error is, and resampling repeats the bias: the
        # pivotal interval, which is reflected at the difference, takes it out.
        found = 2 * difference - _resampled(metric, ours, theirs, seed)
    if not np.isfinite(found).all():
        return Interval(difference, -math.inf, math.inf)
    tail = _tail(count)
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(difference, float(low), float(high))


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))


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
    half = _NORMAL * math.sqrt(max(0.0, (more + less) - (more - less) ** 2 / total)) / total
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Interval((gained - lost) / count, max(-1.0, centre - half), min(1.0, centre + half), p_value)


def _tail(count: int) -> float:
    """Return the share of resampled differences on each side of the interval, which is less than 2.5 % for few images.

    The spread of resampled means is too small by the factor sqrt((n - 1) / n), and few images leave it uncertain, which
    Student's distribution takes into account. Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The
    American Statistician 69 (2015), section 5.3 on the expanded percentile interval.
    """
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1)))


def _resampled_means(column: str, ours: Columns, theirs: Columns, seed: int) -> NDArray[np.float64]:
    """Return the differences of two means on resampled images, (RESAMPLES,)."""
    differences = ours[column] - theirs[column]
    return np.concatenate([differences[drawn].mean(axis=1) for drawn in _draws(len(differences), seed)])


def _resampled(metric: Metric, ours: Columns, theirs: Columns, seed: int) -> NDArray[np.float64]:
    """Return the differences of a metric on resampled images, (RESAMPLES,)."""
    draws = (rows for drawn in _draws(_count(ours), seed) for rows in drawn)
    if metric.sums is None:
        pairs = ((_chosen(ours, rows), _chosen(theirs, rows)) for rows in draws)
        return np.array([metric.compute(mine) - metric.compute(others) for mine, others in pairs])
    compute, terms = metric.sums.compute, (metric.sums.terms(ours), metric.sums.terms(theirs))
    weights = (np.bincount(rows, minlength=_count(ours)).astype(np.float64) for rows in draws)
    return np.array([compute(_summed(terms[0], weight)) - compute(_summed(terms[1], weight)) for weight in weights])


def _draws(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of resampled images, (n, count) at once, in all RESAMPLES times."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _MAX_DRAWN // count)
    for start in range(0, RESAMPLES, at_once):
        yield generator.integers(0, count, (min(at_once, RESAMPLES - start), count))


def _chosen(columns: Columns, rows: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}


def _summed(columns: Columns, weights: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
    """Return the sums of columns over resampled images, as the columns of one image; weights is (N,)."""
    return {name: (weights @ values)[None] for name, values in columns.items()}


def images_needed(images: int, interval: Interval, limit: float) -> int | None:
    """Return about how many images tell whether a difference is beyond a limit.

    The half width of an interval falls with the square root of the number of images. None stands for no number, because
    the difference lies on the limit or the interval is infinite.
    """
    distance = abs(interval.difference - limit)
    half = (interval.high - interval.low) / 2
    if not distance > 0 or not math.isfinite(half):
        return None
    return math.ceil(images * (half / distance) ** 2)
