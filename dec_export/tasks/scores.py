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
class Metric:
    """A metric of many images.

    name: its name in options and JSON, as "top1". label: its name in tables, as "top-1 accuracy".
    compute: the metric of the images whose columns it gets. higher_is_better: the sign of an improvement.
    percent: whether it is a share, which people read in percent. column: the column whose mean it is, if it is a mean.
    """

    name: str
    label: str
    compute: Callable[[Columns], float]
    higher_is_better: bool = True
    percent: bool = True
    column: str | None = None


def mean_of(column: str) -> Callable[[Columns], float]:
    """Return the metric that is the mean of a column; it is NaN without images."""

    def mean(columns: Columns) -> float:
        values = columns[column]
        return float(values.mean()) if len(values) else float("nan")

    return mean
