"""`dec-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dec_export.cli.app import Outcome, answers, show_progress
from dec_export.cli.options import BUNDLE, PATH, THREADS
from dec_export.errors import DecExportError

_PICTURES = (".png", ".svg", ".pdf")


@click.command("bench")
@BUNDLE
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="An engine to time. This option may be repeated.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=("eager", "plain"),
    show_default=True,
    help="What the engines are compared with: eager, compile, plain (the backbone without DEC), optim, train, "
    "optim-train or none. This option may be repeated.",
)
@click.option("--batch", default="1,8", show_default=True, help="The batch sizes, separated by commas.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=11, show_default=True, help="The number of timed runs of each."
)
@THREADS
@click.option("--memory/--no-memory", default=True, help="Measure peak memory too, each in a fresh process.")
@click.option("--plot", "picture", type=PATH, help="The file to draw the times to: .png, .svg or .pdf.")
@answers
def command(
    bundle: Path, batch: str, baselines: tuple[str, ...], picture: Path | None, **options: Any
) -> Outcome[dict[str, Any]]:
    """Time a bundle's engines beside eager PyTorch and the backbone without DEC, interleaved, in one run."""
    batches = _parse_batches(batch)
    if picture and picture.suffix not in _PICTURES:
        raise DecExportError(f"--plot writes .png, .svg or .pdf, found '{picture.name}'.")
    from dec_export.bench.run import bench
    from dec_export.bundle.store import Bundle
    from dec_export.progress import reporting
    from dec_export.report import tables

    wanted = () if baselines == ("none",) else baselines
    with reporting(show_progress):
        report = bench(Bundle.load(bundle), baselines=wanted, batches=batches, **options)
    if picture:
        from dec_export.bench.plot import plot

        plot(report, picture)
    return Outcome(report, dict, tables.bench)


def _parse_batches(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise DecExportError(f"--batch expects numbers separated by commas as in 1,8, found '{text}'.")
    return tuple(map(int, sizes))
