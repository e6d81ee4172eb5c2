"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

from dec_export.cli.app import note

FEW_SAMPLES = 4
PATH = click.Path(path_type=Path)

BUNDLE = click.argument("bundle", type=PATH)
IMAGES = click.option("--images", type=PATH, help="The folder of JPEG and PNG files that the model is proved on.")
SAMPLES = click.option(
    "--samples", type=click.IntRange(min=1), default=8, show_default=True, help="The number of images to use."
)
CPU_FALLBACK = click.option(
    "--cpu-fallback", is_flag=True, help="Let onnxruntime-cuda run on the CPU where CUDA does not start."
)
THREADS = click.option(
    "--threads", type=click.IntRange(1, 1024), help="The number of CPU threads of an engine.  [default: all]"
)


def note_samples(found: int, wanted: int) -> None:
    """Say that a proof has fewer images than were wanted, or too few."""
    if found < wanted:
        note(f"There are only {found} images; {wanted} were asked for.")
    if found < FEW_SAMPLES:
        note(f"With fewer than {FEW_SAMPLES} images the noise floor is a matter of luck, and so is the gate.")
