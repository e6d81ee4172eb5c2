"""The numbers of single images, and the metrics of many images that are computed from them.

An evaluation keeps a few numbers of each image in columns, and computes every metric, and the interval of every
difference of two models, from the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Numbers of N images by name, each an array (N,) or (N, ...) of any dtype, hence Any.
Columns = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Sums:
    """How a metric follows from sums over images, which makes resampling fast.

    terms: the numbers to add up, (N, ...) each, by the columns of N images. compute: the metric by columns of one
    "image", (1, ...) each, that hold the sums.
    """

    terms: Callable[[Columns], Columns]
    compute: Callable[[Columns], float]


@dataclass(frozen=True)
class Metric:
    """A metric of many images.

    name: its name in options and JSON, as "top1". label: its name in tables, as "top-1 accuracy".
    compute: the metric of the images whose columns it gets. higher_is_better: the sign of an improvement.
    percent: whether it is a share, which people read in percent. column: the column whose mean it is, if it is a mean;
    a share that is a mean is one of images that are right (1) or wrong (0). sums: how it follows from sums over images.
    """

    name: str
    label: str
    compute: Callable[[Columns], float]
    higher_is_better: bool = True
    percent: bool = True
    column: str | None = None
    sums: Sums | None = None

    @property
    def is_share_of_images(self) -> bool:
        """Whether it is the share of images that are right."""
        return self.percent and self.column is not None


def its_own_sums(compute: Callable[[Columns], float]) -> Sums:
    """Return the sums of a metric that adds up its columns itself."""
    return Sums(lambda columns: columns, compute)


def mean_of(column: str) -> Callable[[Columns], float]:
    """Return the metric that is the mean of a column; it is NaN without images."""

    def mean(columns: Columns) -> float:
        values = columns[column]
        return float(values.mean()) if len(values) else float("nan")

    return mean
