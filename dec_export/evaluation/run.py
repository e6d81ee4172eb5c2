"""The evaluation of a bundle: chunks are computed here or on a cluster, kept in a journal, and summarised."""

from __future__ import annotations

from pathlib import Path

from dec_export.bundle.store import Bundle
from dec_export.evaluation.computer import Computer
from dec_export.evaluation.computers import computer_for
from dec_export.evaluation.journal import Journal
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.page import write_page
from dec_export.evaluation.plan import Plan, make_plan
from dec_export.evaluation.remaining import Clock
from dec_export.evaluation.results import Results, summarise
from dec_export.evaluation.worker import Worker
from dec_export.progress import step


def evaluate(
    bundle: Bundle | str | Path, data: str | Path, options: EvaluationOptions = EvaluationOptions()
) -> Results:
    """Evaluate a bundle on a labelled data set, beside its reference and other bundles on the same images.

    Memory does not grow with the size of images. An interrupted evaluation goes on with `options.resume`.
    Raises DataError when the data cannot be used, and EngineError or BundleError when a model cannot be.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    with step("list of images"):
        plan = make_plan(bundle, Path(data), options)
    with computer_for(Worker(plan), options.workers, options.cluster) as computer:
        with step("models"):
            environment = computer.environment()
        with Journal.open(plan.fingerprint(environment), options.journal, resume=options.resume) as journal:
            _compute_missing(plan, computer, journal, resumed=options.resume)
            results = summarise(plan, journal.chunks(plan.starts), list(environment.engines))
            write_page(plan, results, Path(data), options)
            journal.remove()
    return results


def _compute_missing(plan: Plan, computer: Computer, journal: Journal, *, resumed: bool) -> None:
    """Compute the chunks that the journal lacks, and keep each as soon as it is finished."""
    missing = [start for start in plan.starts if not journal.holds(start)]
    kept = len(plan.data) - sum(len(plan.samples_of(start)) for start in missing)
    clock = Clock(len(plan.data), kept)
    with step(f"{len(plan.data):,} images" + (f", {kept:,} from before" if resumed else "")):
        try:
            for chunk in computer.chunks(missing):
                journal.add(chunk)
                clock.tell(len(plan.samples_of(chunk.first)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what is finished is kept, and the same command with --resume goes on") from None
