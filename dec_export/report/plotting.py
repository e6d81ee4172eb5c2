"""The style of plots, and their conversion to SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import PercentFormatter

# Keyword arguments of Matplotlib, each of which has its own type: hence Any.
Style = dict[str, Any]

_INCHES = (4.2, 3.1)
_SETTINGS: Style = {
    "svg.hashsalt": "dec-export",  # without it, identifiers are random
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

# The colours of Okabe and Ito, which people with any colour vision can distinguish.
ENGINES: tuple[Style, ...] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#E69F00", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
)
# The reference's line is wide and pale, because the line of a correct engine lies on top of it.
REFERENCE: Style = {"color": "#9a9a9a", "linewidth": 4.5, "solid_capstyle": "round", "zorder": 1.5}
BASELINE: Style = {"color": "black", "linewidth": 1, "linestyle": (0, (1, 2))}


def percent() -> PercentFormatter:
    """Return the formatter of labels on an axis of shares."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1)


def plain_decades(axes: Axes) -> None:
    """Label a logarithmic axis at 0.5 and 2 as well, if its range is too small for labels at powers of ten alone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high / low < 1e3:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


@contextmanager
def plot() -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Give axes to draw on, and a function that returns the picture as SVG after the `with` block.

    Neither pyplot nor the caller's settings of Matplotlib are changed.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        yield axes, buffer.getvalue
        # The legend is outside of the axes, where it hides nothing.
        figure.legend(loc="outside upper left", ncols=2, borderaxespad=0)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
