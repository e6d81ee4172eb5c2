"""The results of a measure in a form that `report` can show: rows and tables for text, figures for a page.

Every engine's section describes its own figure. `report` draws figures of one key, from several engines, into one
picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# The origin of a curve: a reference, whose curve all engines share; an engine; or a baseline, which is neither.
Whose = Literal["reference", "engine", "baseline"]
# The line style of a curve: "own" is the style of the engine; the others distinguish two curves of one engine.
Line = Literal["own", "solid", "dashed"]


class Row(NamedTuple):
    """One fact, with its name and its value in words."""

    name: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the rows, the others hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A picture.

    key: a name that distinguishes the figures of a report.
    alt: a description of the picture in words.
    """

    key: str
    alt: str


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    whose: the origin of the curve.
    label: the name of the curve; if the curve is an engine's, the text that is appended to the engine's name.
    x, y: the coordinates of the points; NaN in y leaves a gap.
    line: the style of the line.
    """

    whose: Whose
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    line: Line = "own"


@dataclass(frozen=True)
class Curves(Figure):
    """Lines over a common axis.

    log: whether the y axis is logarithmic.
    percent: whether y is a share.
    from_zero: whether the y axis starts at 0.
    ticks: the ticks of the x axis; None leaves their choice to Matplotlib.
    mark: a place on the x axis that is marked, and its label.
    """

    curves: tuple[Curve, ...]
    x_label: str
    y_label: str
    title: str = ""
    log: bool = False
    percent: bool = False
    from_zero: bool = False
    ticks: tuple[float, ...] | None = None
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Histogram(Figure):
    """The counts of the float32 reference and of the engine between edges, which are powers of ten."""

    edges: tuple[float, ...]
    reference: tuple[int, ...]
    engine: tuple[int, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Departures(Figure):
    """The distance of every tensor over its noise floor.

    ratios, typical_ratios: the ratio over all samples and that of the typical sample, by the name of the tensor.
    first: the name of the first tensor beyond the noise floor; None if there is none.
    """

    ratios: dict[str, float]
    typical_ratios: dict[str, float]
    first: str | None
