"""What a measure shows of its results, as data: rows and tables for text, figures for a page. `report` draws them.

Every engine's section describes its own figure. Figures of one key, from several engines, are drawn into one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# Whose curve it is: that of a reference, which all engines share; of an engine; or of neither, for comparison.
Whose = Literal["reference", "engine", "baseline"]
# "own" is the line that belongs to the engine; the others tell two curves of one engine apart.
Line = Literal["own", "solid", "dashed"]


class Row(NamedTuple):
    """One fact: its name, and its value in words."""

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
    """A picture. key: distinguishes the figures of a report. alt: what it shows, in words."""

    key: str
    alt: str


@dataclass(frozen=True)
class Curve:
    """One line. label: its name; of an engine's curve, what is appended to the engine's name. y: NaN is a gap."""

    whose: Whose
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    line: Line = "own"


@dataclass(frozen=True)
class Curves(Figure):
    """Lines over a common axis.

    log: whether the y axis is logarithmic. percent: whether y is a share. from_zero: whether the y axis starts at 0.
    ticks: of the x axis. mark: a place on the x axis and its label.
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
    """Counts between edges, which are powers of ten: of the float32 reference, and of the engine."""

    edges: tuple[float, ...]
    reference: tuple[int, ...]
    engine: tuple[int, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Departures(Figure):
    """The distance of every tensor over its noise floor: over all samples, and for the typical sample.

    ratios, typical_ratios: by the tensor's name. first: the first tensor beyond the noise floor, or None.
    """

    ratios: dict[str, float]
    typical_ratios: dict[str, float]
    first: str | None
