"""`dec-export parity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any  # options that Click converts, and JSON

import click

from dec_export.cli.app import GATE_FAILED, Outcome, answers, dumped, note, show_progress
from dec_export.cli.listings import engine_listing, excluded_from_auto
from dec_export.cli.options import BUNDLE, CPU_FALLBACK, IMAGES, PATH, SAMPLES, THREADS, note_samples

if TYPE_CHECKING:
    from dec_export.parity.report import Report


@click.command("parity")
@BUNDLE
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=f"The engine to prove: {engine_listing()}; or auto, which selects the first of these that the bundle holds "
    f"and this machine can run, except {excluded_from_auto()}.",
)
@CPU_FALLBACK
@click.option(
    "--allow-host-code",
    is_flag=True,
    help="Allow a version-compatible TensorRT engine to run the library that it contains.",
)
@IMAGES
@SAMPLES
@THREADS
@click.option("--trace", is_flag=True, help="Find the first tensor at which the engine departs from the reference.")
@click.option("--layers", is_flag=True, help="Measure the equivariance of every block to rotation, flip and scale.")
@click.option("--html", type=PATH, help="The file for the report as an HTML page with pictures.")
@click.option("--force", is_flag=True, help="Overwrite the file at --html, if there is one.")
@answers
def command(bundle: Path, engine: str, trace: bool, samples: int, html: Path | None, **options: Any) -> Outcome[Report]:
    """Prove a bundle's engine against the float64 reference. Exit 1 when the gate fails."""
    from dec_export.report import tables

    report = _prove(bundle, engine, trace=trace, samples=samples, html=html, **options)
    note_samples(report.samples, samples)
    if html:
        note(f"The report is in {html}.")
    return Outcome(report, dumped, tables.traced if trace else tables.parity, 0 if report.passed else GATE_FAILED)


def _prove(
    bundle: Path, engine: str, *, trace: bool, samples: int, html: Path | None, force: bool, **options: Any
) -> Report:
    from dec_export.bundle.store import Bundle
    from dec_export.engines.base import RunOptions
    from dec_export.pipeline.options import ProofOptions
    from dec_export.pipeline.prove import prove
    from dec_export.progress import reporting

    run = RunOptions(options["threads"], options["cpu_fallback"], options["allow_host_code"])
    proof = ProofOptions(options["images"], samples, trace, options["layers"])
    with reporting(show_progress):
        return prove(Bundle.load(bundle), engine, run=run, proof=proof, page=html, force=force)
