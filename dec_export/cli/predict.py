"""`dec-export predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any  # options that Click converts

import click

from dec_export.cli.app import Outcome, answers, dumped, note, show_progress
from dec_export.cli.listings import engine_listing
from dec_export.cli.options import BUNDLE, CPU_FALLBACK, PATH, RAY, THREADS

if TYPE_CHECKING:
    from dec_export.evaluation.predictions import PredictionOptions, Predictions


@click.command("predict")
@BUNDLE
@click.option("--data", type=PATH, required=True, help="The images, with or without labels, in a known layout.")
@click.option("--out", type=PATH, required=True, help="The file for the predictions, named .parquet or .csv.")
@click.option("--force", is_flag=True, help="Overwrite the file at --out, if there is one.")
@click.option("--engine", default="auto", show_default=True, help=f"The engine that predicts: {engine_listing()}.")
@click.option(
    "--top-k", type=click.IntRange(1), default=5, show_default=True, help="The number of classes for each image."
)
@click.option("--layout", help="The layout of the data; by default it is recognised.")
@click.option("--class-index", type=PATH, help="A file with the names of the model's classes by their numbers.")
@click.option("--limit", type=click.IntRange(min=1), help="The number of images, taken evenly from all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="The images of one run.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="The threads that decode.")
@click.option("--strict", is_flag=True, help="End when an image cannot be decoded, instead of noting it in the file.")
@RAY
@CPU_FALLBACK
@THREADS
@answers
def command(bundle: Path, data: Path, out: Path, **options: Any) -> Outcome[Predictions]:
    """Write a bundle's predictions for many images to a Parquet or CSV file."""
    from dec_export.evaluation.predictions import predict
    from dec_export.progress import reporting

    with reporting(show_progress):
        found = predict(bundle, data, out, _options(**options))
    if found.skipped:
        note(f"{found.skipped} images could not be decoded; the column error of the file says why.")
    return Outcome(found, dumped, _rendered)


def _options(
    *, threads: int | None, cpu_fallback: bool, layout: str | None, class_index: Path | None, **rest: Any
) -> PredictionOptions:
    from dec_export.engines.base import RunOptions
    from dec_export.evaluation.layouts.base import DataOptions
    from dec_export.evaluation.predictions import PredictionOptions

    data = DataOptions(class_index=class_index, layout=layout)
    return PredictionOptions(run=RunOptions(threads, cpu_fallback), data=data, **rest)


def _rendered(found: Predictions) -> str:
    return f"The predictions of {found.engine} for {found.images:,} images ({found.layout}) are in {found.file}."
