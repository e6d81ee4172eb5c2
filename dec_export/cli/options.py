"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from dec_export.cli.app import note

FEW_SAMPLES = 4
PATH = click.Path(path_type=Path)

BUNDLE = click.argument("bundle", type=PATH)
IMAGES = click.option("--images", type=PATH, help="A folder of JPEG and PNG files for the proof.")
SAMPLES = click.option(
    "--samples", type=click.IntRange(min=1), default=8, show_default=True, help="The number of images to use."
)
CPU_FALLBACK = click.option(
    "--cpu-fallback", is_flag=True, help="Allow onnxruntime-cuda to run on the CPU when CUDA does not start."
)
THREADS = click.option(
    "--threads", type=click.IntRange(1, 1024), help="The number of CPU threads that an engine uses.  [default: all]"
)
RAY = click.option(
    "--ray",
    "cluster",
    metavar="ADDRESS",
    help="The Ray cluster that computes: local starts one on this machine, and auto or HOST:PORT joins a running one. "
    "Each engine uses one CPU thread there unless --threads says otherwise.",
)


def note_samples(found: int, wanted: int) -> None:
    """Print a note when a proof has fewer images than the user asked for, or too few for a reliable gate."""
    if found < wanted:
        note(f"There are only {found} images; {wanted} were asked for.")
    if found < FEW_SAMPLES:
        note(f"With fewer than {FEW_SAMPLES} images the noise floor is uncertain, and so is the verdict of the gate.")
