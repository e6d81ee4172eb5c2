"""The drawing of sections' figures as SVG, whose bytes depend on the figures alone.

Each picture can be read at the width of a phone. Engines differ by line and marker, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dec_export.names import TensorName, computation_order
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.presentation import Curve, Curves, Departures, Figure, Histogram
from dec_export.report.plotting import BASELINE, ENGINES, REFERENCE, Style, percent, plain_decades, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The place of a ratio of zero on a logarithmic axis, and the factor above the largest ratio for one that is not finite.
_SMALLEST_RATIO = 1e-3
_BEYOND = 3.0
_DASHED = (0, (2, 1.2))

F = TypeVar("F", bound=Figure)


class Drawn(NamedTuple):
    """A figure as SVG, and a description of it in words."""

    svg: str
    alt: str


class Owned(NamedTuple):
    """The figure of one engine.

    place: the place of the engine among all engines of the page, which determines its style.
    """

    engine: str
    place: int
    figure: Figure


def draw(owned: Sequence[Owned]) -> Drawn:
    """Draw one or more figures of one key into one picture; raise TypeError for a type without a drawing function."""
    kind = type(owned[0].figure)
    if kind not in _DRAWERS:
        raise TypeError(f"No function draws a figure of type {kind.__name__}: add one to report/figures.py.")
    return _DRAWERS[kind](owned)


def _of_type(owned: Iterable[Owned], kind: type[F]) -> list[tuple[str, F, Style]]:
    """Return the name, the figure and the style of each engine."""
    return [
        (engine, figure, ENGINES[place % len(ENGINES)]) for engine, place, figure in owned if isinstance(figure, kind)
    ]


def _curves(owned: Sequence[Owned]) -> Drawn:
    figures = _of_type(owned, Curves)
    first = figures[0][1]
    with plot() as (axes, written):
        for shape in _shapes(figure for _, figure, _ in figures):
            for engine, curve, look in _sharing(shape, figures):
                label = f"{engine}{curve.label}" if curve.whose == "engine" else curve.label
                axes.plot(curve.x, curve.y, label=label, **_style(curve, look))
        if first.mark is not None:
            place, label = first.mark
            axes.axvline(place, color="#777777", linewidth=0.8, linestyle=(0, (4, 2)), label=label)
        _label_axes(axes, first)
    return Drawn(written(), first.alt)


class _Shape(NamedTuple):
    """The properties that the curves of several engines share."""

    whose: str
    label: str


def _shapes(figures: Iterable[Curves]) -> list[_Shape]:
    """Return all shapes in the order of drawing; an engine may lack a curve that another has."""
    return list(dict.fromkeys(_Shape(curve.whose, curve.label) for figure in figures for curve in figure.curves))


def _sharing(shape: _Shape, figures: Iterable[tuple[str, Curves, Style]]) -> Iterator[tuple[str, Curve, Style]]:
    """Yield every engine's curve of a shape, or a single curve if all engines share it."""
    for engine, figure, look in figures:
        for curve in figure.curves:
            if (curve.whose, curve.label) == shape:
                yield engine, curve, look
                if curve.whose != "engine":
                    return


def _style(curve: Curve, look: Style) -> Style:
    style = {"engine": look, "reference": REFERENCE, "baseline": BASELINE}[curve.whose]
    if curve.line == "own":
        return style
    dashed: Style = {"linestyle": _DASHED, "markerfacecolor": "white"}
    line: Style = {"linestyle": "-"} if curve.line == "solid" else dashed
    return style | line | ({"linewidth": 0.8} if curve.whose == "engine" else {})


def _label_axes(axes: Axes, figure: Curves) -> None:
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label, **({"yscale": "log"} if figure.log else {}))
    if figure.title:
        axes.set_title(figure.title, fontweight="bold")
    if figure.ticks is not None:
        axes.set_xticks(figure.ticks)
    if figure.log:
        plain_decades(axes)
    if figure.percent:
        axes.yaxis.set_major_formatter(percent())
    if figure.from_zero:
        axes.set_ylim(bottom=0)


def _histogram(owned: Sequence[Owned]) -> Drawn:
    figures = _of_type(owned, Histogram)
    first = figures[0][1]
    with plot() as (axes, written):
        axes.stairs(_shares(first.reference), first.edges, fill=True, color="#cfcfcf", label="float32 reference")
        for engine, figure, look in figures:
            style = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.6}
            axes.stairs(_shares(figure.engine), figure.edges, label=engine, **style)
        axes.set(xscale="log", xlabel=first.x_label, ylabel=first.y_label)
        axes.set_xlim(*_occupied([figure for _, figure, _ in figures]))
        axes.yaxis.set_major_formatter(percent())
    return Drawn(written(), f"{first.alt}, of {listed(['the float32 reference', *(name for name, _, _ in figures)])}.")


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]


def _occupied(figures: Sequence[Histogram]) -> tuple[float, float]:
    """Return the edges of the range of bins that are not empty, with one more bin at each end."""
    edges = figures[0].edges
    counts = [counts for figure in figures for counts in (figure.engine, figure.reference)]
    used = [i for found in counts for i, count in enumerate(found) if count]
    return edges[max(min(used) - 1, 0)], edges[min(max(used) + 2, len(edges) - 1)]


def _departures(owned: Sequence[Owned]) -> Drawn:
    figures = _of_type(owned, Departures)
    names = computation_order({name for _, figure, _ in figures for name in figure.ratios})
    top = _BEYOND * max([MAX_RATIO, *(ratio for _, figure, _ in figures for ratio in _finite(figure))])
    with plot() as (axes, written):
        axes.axhline(MAX_RATIO, color="black", linewidth=1, linestyle=(0, (4, 2)), label=f"gate: {MAX_RATIO:g}")
        for engine, figure, look in figures:
            places = [names.index(name) for name in figure.ratios]
            typical = _within(figure.typical_ratios.values(), top)
            axes.plot(places, _within(figure.ratios.values(), top), label=engine, **look)
            axes.plot(places, typical, color=look["color"], linewidth=0.8, linestyle=":")
            lost = [names.index(name) for name, ratio in figure.ratios.items() if not math.isfinite(ratio)]
            if lost:
                axes.plot(lost, [top] * len(lost), "x", color=look["color"], markersize=7, label="not finite")
        axes.set(yscale="log", ylabel="distance / noise floor")
        plain_decades(axes)
        _mark_groups(axes, names)
    firsts = ", ".join(f"{engine} {figure.first or 'never'}" for engine, figure, _ in figures)
    return Drawn(written(), f"{figures[0][1].alt}, with the gate at {MAX_RATIO:g}. First beyond it: {firsts}.")


def _finite(figure: Departures) -> list[float]:
    ratios = (*figure.ratios.values(), *figure.typical_ratios.values())
    return [ratio for ratio in ratios if math.isfinite(ratio)]


def _within(ratios: Iterable[float], top: float) -> list[float]:
    """Return ratios as they are drawn, with `top` for those that are not finite."""
    return [max(ratio, _SMALLEST_RATIO) if math.isfinite(ratio) else top for ratio in ratios]


def _mark_groups(axes: Axes, names: Sequence[str]) -> None:
    """Name the parts of the model under the axis, and draw lines between them."""
    groups = [_group(name) for name in names]
    starts = [i for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group]
    ends = [*starts[1:], len(groups)]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="#777777", linewidth=0.8)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    axes.set_xticks(middles, [groups[start] for start in starts])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")


def _group(name: str) -> str:
    parsed = TensorName.parse(name)
    return f"canonicalizer\n{parsed.place}" if parsed is not None and parsed.of_solver else "backbone\nand head"


def listed(words: Sequence[str]) -> str:
    """Return the words with commas and "and" between them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


_DRAWERS: dict[type[Figure], Callable[[Sequence[Owned]], Drawn]] = {
    Curves: _curves,
    Histogram: _histogram,
    Departures: _departures,
}
