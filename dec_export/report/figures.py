"""Plots of parity reports as SVG, the same bytes for the same reports.

Each is small enough to be read at the width of a phone. Engines differ by line and marker, not by colour alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dec_export.names import computation_order, of_solver
from dec_export.parity.gate import MAX_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]
_Style = dict[str, Any]

_INCHES = (4.2, 3.1)
_SETTINGS: _Style = {
    "svg.hashsalt": "dec-export",  # else identifiers are random
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


# Okabe and Ito's colours, which people with any colour vision tell apart.
_ENGINES: tuple[_Style, ...] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#E69F00", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
)
# Wide and pale, because a right engine's line lies on top of it.
_REFERENCE: _Style = {"color": "#9a9a9a", "linewidth": 4.5, "solid_capstyle": "round", "zorder": 1.5}
# Where a ratio of zero, or what is not finite, is drawn on a logarithmic axis.
_SMALLEST_RATIO = 1e-3
_BEYOND = 3.0


def error_histogram(reports: Sequence[Report]) -> str | None:
    """How far single logits are from float64, in powers of ten of their rms; None when no value differs."""
    errors = [report["errors"] for report in reports]
    if not any(sum(entry["engine"]) or sum(entry["reference_fp32"]) for entry in errors):
        return None
    with _plot() as (axes, written):
        edges = [10**edge for edge in errors[0]["edges"]]
        axes.stairs(_shares(errors[0], "reference_fp32"), edges, fill=True, color="#cfcfcf", label="float32 reference")
        for report, look in _with_looks(reports):
            style = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.6}
            axes.stairs(_shares(report["errors"], "engine"), edges, label=report["engine"], **style)
        axes.set(xscale="log", xlabel="|logit - float64| / rms of the logits", ylabel="share of the logits")
        axes.set_xlim(*_occupied(errors, edges))
        axes.yaxis.set_major_formatter(_percent())
    return written()


def _shares(entry: Report, name: str) -> list[float]:
    count = sum(entry[name]) or 1
    return [value / count for value in entry[name]]


def _occupied(errors: Iterable[Report], edges: Sequence[float]) -> tuple[float, float]:
    """The edges between which there is anything, and one bin more at each end."""
    used = [i for entry in errors for name in ("engine", "reference_fp32") for i, n in enumerate(entry[name]) if n]
    return edges[max(min(used) - 1, 0)], edges[min(max(used) + 2, len(edges) - 1)]


def residuals(reports: Sequence[Report], layer: str) -> str | None:
    """The residual of one layer's solver at every evaluation of f; None when nobody shows it."""
    solvers = [report["solver"][layer] for report in reports]
    if not any(_finite(solver[who] or []) for solver in solvers for who in ("reference", "engine")):
        return None
    with _plot() as (axes, written):
        axes.plot(_points(solvers[0]["reference"] or []), label="float64 reference", **_REFERENCE)
        for report, look in _with_looks(reports):
            if (found := report["solver"][layer]["engine"]) is not None:
                axes.plot(_points(found), label=report["engine"], **look)
        axes.set(yscale="log", xlabel="iteration k", ylabel="|| f(z) - z ||, median")
        axes.set_title(f"canonicalizer {layer.removeprefix('phi_')}", fontweight="bold")
        axes.set_xticks(range(len(solvers[0]["reference"] or [])))
        _plain_decades(axes)
    return written()


def trace(reports: Sequence[Report]) -> str:
    """Every tensor's distance from float64 in units of the noise floor, in the order of computation."""
    names = computation_order({name for report in reports for name in report["trace"]["tensors"]})
    top = _BEYOND * max(_ratios(reports, MAX_RATIO))
    with _plot() as (axes, written):
        axes.axhline(MAX_RATIO, color="black", linewidth=1, linestyle=(0, (4, 2)), label=f"gate: {MAX_RATIO:g}")
        for report, look in _with_looks(reports):
            tensors = report["trace"]["tensors"]
            places = [names.index(name) for name in tensors]
            axes.plot(places, _drawn(tensors, "ratio", top), label=report["engine"], **look)
            axes.plot(places, _drawn(tensors, "typical_ratio", top), color=look["color"], linewidth=0.8, linestyle=":")
            lost = [names.index(name) for name, entry in tensors.items() if entry["ratio"] is None]
            if lost:
                axes.plot(lost, [top] * len(lost), "x", color=look["color"], markersize=7, label="not finite")
        axes.set(yscale="log", ylabel="distance / noise floor")
        _plain_decades(axes)
        _mark_groups(axes, names)
    return written()


def _ratios(reports: Iterable[Report], *more: float) -> list[float]:
    tensors = [entry for report in reports for entry in report["trace"]["tensors"].values()]
    return [*more, *_finite(entry[name] for entry in tensors for name in ("ratio", "typical_ratio"))]


def _drawn(tensors: Report, kind: str, beyond: float) -> list[float]:
    ratios = [entry[kind] for entry in tensors.values()]
    return [beyond if ratio is None else max(ratio, _SMALLEST_RATIO) for ratio in ratios]


def _plain_decades(axes: Axes) -> None:
    """Write 0.5 and 2 on a logarithmic axis that spans so little that powers of ten would not be enough."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high / low < 1e3:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


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
    numbers = re.findall(r"\d+", name)
    return f"canonicalizer\n{numbers[0]}" if of_solver(name) else "backbone\nand head"


def scores(reports: Sequence[Report]) -> str:
    """How often the model is right at every scale; reports hold labelled results."""
    facts = reports[0]["labelled"]
    with _plot() as (axes, written):
        for name, title, change in (
            ("plain", "", {"linestyle": "-"}),
            ("locally_scaled", ", locally scaled", {"linestyle": (0, (2, 1.2)), "markerfacecolor": "white"}),
        ):
            reference = _points(facts["reference"][name])
            axes.plot(facts["scales"], reference, label=f"reference{title}", **(_REFERENCE | change))
            for report, look in _with_looks(reports):
                values = _points(report["labelled"]["engine"][name])
                style = look | change | {"linewidth": 0.8}
                axes.plot(facts["scales"], values, label=f"{report['engine']}{title}", **style)
        axes.set(xlabel="scale of the objects", ylabel=facts["score"])
        axes.yaxis.set_major_formatter(_percent())
    return written()


def invariance(reports: Sequence[Report]) -> str:
    """InvE or EqE at every scale; reports hold labelled results."""
    facts = reports[0]["labelled"]
    with _plot() as (axes, written):
        axes.plot(facts["scales"], _points(facts["reference"]["invariance"]), label="reference", **_REFERENCE)
        for report, look in _with_looks(reports):
            values = _points(report["labelled"]["engine"]["invariance"])
            axes.plot(facts["scales"], values, label=report["engine"], **look)
        axes.set(xlabel="scale of the objects", ylabel=f"{facts['metric']}, lower is better")
        axes.set_ylim(bottom=0)
    return written()


def equivariance(reports: Sequence[Report], insert_at: int | None) -> str:
    """The error of every block's map, the mean over turns, flips and scales; reports hold equivariance.

    insert_at: the block that a late class token enters.
    """
    with _plot() as (axes, written):
        for key, label, style in (
            ("reference", "float64 reference", _REFERENCE),
            ("unaligned", "a map that does not follow", {"color": "black", "linewidth": 1, "linestyle": (0, (1, 2))}),
        ):
            axes.plot(*_by_block(reports[0], key), label=label, **style)
        for report, look in _with_looks(reports):
            axes.plot(*_by_block(report, "engine"), label=report["engine"], **look)
        if insert_at:
            axes.axvline(insert_at - 0.5, color="#777777", linewidth=0.8, linestyle=(0, (4, 2)), label="class token")
        axes.set(xlabel="block or stage", ylabel="relative error, lower is better")
        axes.set_xticks(_by_block(reports[0], "engine")[0])
        axes.set_ylim(bottom=0)
    return written()


def _by_block(report: Report, key: str) -> tuple[list[int], list[float]]:
    """Blocks, and the mean over all g of one fact of them."""
    layers = report["equivariance"]["layers"]
    means = [
        math.fsum(_points(facts[key] for facts in by_action.values())) / len(by_action) for by_action in layers.values()
    ]
    return [int(place) for place in layers], means


def _with_looks(reports: Sequence[Report]) -> Iterator[tuple[Report, _Style]]:
    for i, report in enumerate(reports):
        yield report, _ENGINES[i % len(_ENGINES)]


def _points(values: Iterable[float | None]) -> list[float]:
    """NaN for what is not finite: a gap in the line."""
    return [math.nan if value is None else value for value in values]


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1)


@contextmanager
def _plot() -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes to draw on, and a function that returns the picture once the block has ended.

    Neither pyplot nor the settings of whoever runs this are touched.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        yield axes, buffer.getvalue
        # Outside, where it hides nothing.
        figure.legend(loc="outside upper left", ncols=2, borderaxespad=0)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
