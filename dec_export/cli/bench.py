"""`dec-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any  # values of options, which Click converts, and of JSON

import click

from dec_export.cli.app import Outcome, answers, dumped, show_progress
from dec_export.cli.listings import baseline_listing, engine_listing
from dec_export.cli.options import BUNDLE, PATH, THREADS
from dec_export.errors import DecExportError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from dec_export.bench.report import BatchTimings, BenchReport, EngineTiming

_PICTURES = (".png", ".svg", ".pdf")


@click.command("bench")
@BUNDLE
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help=f"An engine to time: {engine_listing()}. This option may be repeated.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=("eager", "plain"),
    show_default=True,
    help=f"A baseline to compare the engines with: {baseline_listing()}; or none. This option may be repeated.",
)
@click.option("--batch", default="1,8", show_default=True, help="The batch sizes, separated by commas.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=11,
    show_default=True,
    help="The number of timed runs of each engine.",
)
@THREADS
@click.option(
    "--memory/--no-memory", default=True, help="Also measure the peak memory of each engine in a new process."
)
@click.option("--plot", "picture", type=PATH, help="The file for a chart of the times: .png, .svg or .pdf.")
@answers
def command(
    bundle: Path, batch: str, baselines: tuple[str, ...], picture: Path | None, **options: Any
) -> Outcome[BenchReport]:
    """Time a bundle's engines.

    Baselines such as eager PyTorch and the backbone without DEC are timed in the same run, and all take turns.
    """
    batches = _parse_batches(batch)
    if picture and picture.suffix not in _PICTURES:
        raise DecExportError(f"--plot expects a file that ends in .png, .svg or .pdf, found '{picture.name}'.")
    from dec_export.bench.run import bench
    from dec_export.bundle.store import Bundle
    from dec_export.progress import reporting

    wanted = () if baselines == ("none",) else baselines
    with reporting(show_progress):
        report = bench(Bundle.load(bundle), baselines=wanted, batches=batches, **options)
    if picture:
        from dec_export.bench.plot import plot

        plot(report, picture)
    return Outcome(report, dumped, _render)


def _parse_batches(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise DecExportError(f"--batch expects numbers separated by commas as in 1,8, found '{text}'.")
    return tuple(map(int, sizes))


def _render(report: BenchReport) -> RenderableType:
    from rich.console import Group

    from dec_export.bench.report import EngineTiming
    from dec_export.report.tables import key_values

    engines = {
        f"{name}, batch {entry.batch}": _line(timing)
        for entry in report.batches
        for name, timing in entry.subjects.items()
        if isinstance(timing, EngineTiming)
    }
    context = {
        "machine": f"{report.machine.processor}, {report.threads} threads, {report.rounds} interleaved rounds",
        "measured peaks": f"{report.peaks.flops / 1e9:.0f} GFLOP/s, {report.peaks.bytes / 1e9:.1f} GB/s",
        **engines,
    }
    return Group(*(_table(report, entry) for entry in report.batches), key_values("", context))


def _table(report: BenchReport, entry: BatchTimings) -> Table:
    from dec_export.report.tables import table

    numbers = ("median ms", "quartiles", "images/s", "peak memory")
    rows = (
        (
            name,
            f"{timing.median * 1e3:.1f}",
            f"{timing.quartile_low * 1e3:.1f} - {timing.quartile_high * 1e3:.1f}",
            f"{timing.images_per_second:.1f}",
            _memory_cell(report, entry.batch, name),
        )
        for name, timing in entry.subjects.items()
    )
    title = (
        f"{report.recipe}, {report.precision}, batch {entry.batch}: {entry.graph.flops / 1e9:.1f} GFLOP, "
        f"{entry.graph.bytes / 1e9:.2f} GB unfused"
    )
    return table(title, ("subject", *numbers), rows, numbers)


def _line(timing: EngineTiming) -> str:
    ratios = ", ".join(f"{value:.2f}x faster than {name}" for name, value in timing.ratio_to.items())
    overhead = "" if timing.overhead is None else f"; DEC costs {timing.overhead:.2f}x the plain backbone's time"
    return f"{ratios}; {timing.share_of_peak_flops:.0%} of the peak FLOP/s{overhead}"


def _memory_cell(report: BenchReport, batch: int, name: str) -> str:
    used = report.peak_memory_bytes.get(name)
    if used is None or batch != report.peak_memory_batch:
        return ""
    return f"{used.peak / 1e6:.0f} MB (before: {used.before / 1e6:.0f})"
