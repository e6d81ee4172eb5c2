"""The evaluation of a bundle in this process: images are decoded in threads while the engines run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dec_export.bundle.store import Bundle
from dec_export.evaluation.journal import Journal
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.page import write_page
from dec_export.evaluation.plan import make_plan
from dec_export.evaluation.results import Results, summarise
from dec_export.evaluation.worker import Picture, Worker
from dec_export.progress import step, tell

# The chunks that are decoded ahead of the one that runs.
_AHEAD = 2


def evaluate(
    bundle: Bundle | str | Path, data: str | Path, options: EvaluationOptions = EvaluationOptions()
) -> Results:
    """Evaluate a bundle on a labelled data set, beside its reference and other bundles on the same images.

    Memory does not grow with the number of images. An interrupted evaluation goes on with `options.resume`.
    Raises DataError when the data cannot be used, and EngineError or BundleError when a model cannot be.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    with step("list of images"):
        plan = make_plan(bundle, Path(data), options)
    journal = Journal.open(plan, options.journal, resume=options.resume)
    worker = Worker(plan)
    with step("models"):
        names = [model.engine.name for model in worker.models]
    with step(f"{len(plan.data)} images"):
        compute_missing(worker, journal, options.workers)
    results = summarise(plan, journal.chunks(plan.starts), names)
    write_page(plan, results, Path(data), options)
    journal.remove()
    return results


def compute_missing(worker: Worker, journal: Journal, threads: int) -> None:
    """Compute the chunks that the journal lacks, in order, and keep each as soon as it is finished."""
    plan = worker.plan
    missing = [start for start in plan.starts if not journal.holds(start)]
    clock = _Clock(len(plan.data), len(plan.starts) - len(missing), plan.batch)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, list[Future[Picture | str]]]] = deque()
        try:
            for start in missing:
                waiting.append((start, worker.submit(start, pool)))
                if len(waiting) > _AHEAD:
                    _finish(worker, journal, *waiting.popleft(), clock)
            while waiting:
                _finish(worker, journal, *waiting.popleft(), clock)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _finish(
    worker: Worker, journal: Journal, start: int, decoded: Iterable[Future[Picture | str]], clock: _Clock
) -> None:
    journal.add(worker.compute(start, [future.result() for future in decoded]))
    clock.tell()


class _Clock:
    """Reports how many images are finished, and an estimate of the time that the others take."""

    def __init__(self, images: int, finished_chunks: int, batch: int) -> None:
        self._images, self._batch = images, batch
        self._finished, self._new = finished_chunks, 0
        self._begin = time.monotonic()

    def tell(self) -> None:
        """Report that one more chunk is finished."""
        self._new += 1
        images = min(self._images, (self._finished + self._new) * self._batch)
        left = max(0, self._images - images)
        seconds = left * (time.monotonic() - self._begin) / (self._new * self._batch)
        tell(f"{images:,} finished, about {_in_words(seconds)} left")


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
