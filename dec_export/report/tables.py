"""The tables that commands print for reports, for TensorRT engines, and for lists of facts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dec_export.bundle.plans import PlanEntry
from dec_export.parity.measures.trace import Trace
from dec_export.parity.presentation import Table as PlainTable
from dec_export.parity.report import Report


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], numbers: Collection[str] = ()) -> Table:
    """Return a plain table; the columns named in `numbers` are aligned to the right."""
    result = Table(title=Text(title), title_justify="left", header_style="bold")
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


def key_values(title: str, values: Mapping[str, object]) -> Table:
    """Return a table of two columns without a header."""
    result = Table(title=Text(title), title_justify="left", show_header=False)
    result.add_column(no_wrap=True)
    result.add_column(overflow="fold")
    for key, value in values.items():
        result.add_row(key, Text(str(value)))
    return result


def parity(report: Report) -> RenderableType:
    """Return the distances of one engine, the gate's verdict, and the tables of the other measures."""
    rows = [row for section in report.sections for row in section.rows()]
    summary = {
        "gate": report.gate.upper(),
        "rule": report.gate_rule,
        **dict(rows),
        **({"failures": "; ".join(report.failures)} if report.failures else {}),
    }
    # The distances are the first section of every report.
    distances, *others = (_drawn(found) for section in report.sections for found in section.tables(report))
    return Group(distances, key_values("", summary), *others)


def traced(report: Report) -> RenderableType:
    """Return the tables of `parity`, and a table of every tensor, which shows where the engine leaves the reference."""
    trace = report[Trace]
    return Group(parity(report), _drawn(trace.tensor_table(report)), Text(trace.verdict))


def _drawn(found: PlainTable) -> Table:
    return table(found.title, found.columns, found.rows, numbers=found.columns[1:])


def plan(name: str, entry: PlanEntry, more: Mapping[str, object] | None = None) -> RenderableType:
    """Return the purpose of a TensorRT engine, and the facts that were read back from it."""
    smallest, likeliest, largest = entry.options.batch
    found = ", ".join(
        f"{products.graph} in {dtype} ({products.found} found in the engine)"
        for dtype, products in entry.precision.items()
    )
    layers, plugin, memory = entry.layers, entry.plugin, entry.peak_memory_bytes
    return key_values(
        f"Engine {name}",
        {
            "built with": f"version {entry.version}, CUDA {entry.cuda or 'unknown'}, in {entry.seconds:.0f} s"
            + (f" and {memory / 1e9:.1f} GB" if memory else ""),
            "for compute capability": entry.capabilities,
            "batch": f"{smallest} to {largest}, tuned for {likeliest}",
            "matrix products": found,
            **({"plugin": ("used: " if plugin.used else "not used: ") + plugin.detail} if plugin else {}),
            "layers": f"{layers.count}: " + ", ".join(f"{n} {dtype}" for dtype, n in layers.by_dtype.items()),
            "by type": ", ".join(f"{n} {kind}" for kind, n in layers.by_type.items()),
            **(more or {}),
        },
    )
