"""`dec-export evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any  # options that Click converts

import click

from dec_export.cli.app import CANNOT_TELL, GATE_FAILED, Outcome, answers, dumped, note, show_progress
from dec_export.cli.listings import engine_listing
from dec_export.cli.options import BUNDLE, CPU_FALLBACK, PATH, RAY, THREADS

if TYPE_CHECKING:
    from dec_export.evaluation.options import EvaluationOptions
    from dec_export.evaluation.results import Results


@click.command("evaluate")
@BUNDLE
@click.option("--data", type=PATH, required=True, help="The labelled images: a folder, a table, or tar archives.")
@click.option(
    "--engine", default="auto", show_default=True, help=f"The engine to evaluate: {engine_listing()}; or auto."
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=("torch",),
    show_default=True,
    help="What the engine is compared with, on the same images: torch is the float32 reference; or another bundle. "
    "Repeat the option for several.",
)
@click.option("--layout", help="The layout of the data; by default it is recognised.")
@click.option("--class-index", type=PATH, help="A file that numbers the classes as the model does.")
@click.option("--ignore-index", "ignored", type=click.IntRange(0, 255), help="The value of masks that does not count.")
@click.option("--limit", type=click.IntRange(min=1), help="The number of images, taken evenly from all.")
@click.option(
    "--strength",
    "strengths",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    help="A strength of local scaling; repeat the option for several.  [default: the recipe's]",
)
@click.option(
    "--corruption", "corruptions", multiple=True, help="A corruption, or all of the fifteen; repeat it for several."
)
@click.option(
    "--severity",
    "severities",
    type=click.IntRange(1, 5),
    multiple=True,
    default=(1, 2, 3, 4, 5),
    show_default=True,
    help="How strong corruptions are; repeat it for several.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The seed of changes of images.")
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="The images of one run.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, show_default=True, help="The threads that decode.")
@click.option("--strict", is_flag=True, help="End when an image cannot be decoded, instead of counting it.")
@click.option(
    "--max-drop",
    multiple=True,
    metavar="METRIC[@CONDITION]=DROP",
    help="How much worse than its first baseline the engine may be, as top1=0.5 (percentage points) or inve=0.01. "
    "Repeat the option for several metrics.",
)
@click.option("--html", "page", type=PATH, help="The file for the report as an HTML page with curves and pictures.")
@click.option("--force", is_flag=True, help="Overwrite the file at --html, if there is one.")
@click.option("--resume", is_flag=True, help="Go on with an evaluation that was interrupted.")
@RAY
@CPU_FALLBACK
@THREADS
@answers
def command(bundle: Path, data: Path, **options: Any) -> Outcome[Results]:
    """Measure accuracy and invariance of a bundle on your own labelled images, beside its reference.

    Exit 1 when a limit of --max-drop is exceeded, and 3 when there are too few images to tell.
    """
    from dec_export.bundle.store import Bundle
    from dec_export.evaluation.run import evaluate
    from dec_export.evaluation.tables import evaluation
    from dec_export.progress import reporting

    loaded = Bundle.load(bundle)
    if not options["strengths"]:
        options["strengths"] = (loaded.recipe.evaluation.strength,)
    with reporting(show_progress):
        results = evaluate(loaded, data, _options(**options))
    if results.skipped:
        first, reason = next(iter(results.skipped.items()))
        note(f"{len(results.skipped)} images were left out; the first is {first}: {reason}")
    if options["page"]:
        note(f"The report is in {options['page']}.")
    return Outcome(results, dumped, evaluation, _exit_code(results))


def _exit_code(results: Results) -> int:
    from dec_export.evaluation.gate import Verdict

    codes = {Verdict.PASSED: 0, Verdict.FAILED: GATE_FAILED, Verdict.UNDECIDED: CANNOT_TELL}
    return codes[results.gate.verdict] if results.gate else 0


def _options(
    *,
    threads: int | None,
    cpu_fallback: bool,
    layout: str | None,
    class_index: Path | None,
    ignored: int | None,
    **rest: Any,
) -> EvaluationOptions:
    from dec_export.engines.base import RunOptions
    from dec_export.evaluation.layouts.base import DataOptions
    from dec_export.evaluation.options import EvaluationOptions

    return EvaluationOptions(
        run=RunOptions(threads, cpu_fallback), data=DataOptions(class_index, ignored, layout), **rest
    )
