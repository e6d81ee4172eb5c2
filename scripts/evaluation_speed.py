"""Measure how fast `dec-export evaluate` is, how much memory it takes, and how it gains from a second Ray worker.

python scripts/evaluation_speed.py BUNDLE OUT.json [throughput] [memory] [ray]

The images are labelled digits, which the script writes to a temporary folder. Every engine uses one thread. Each ratio
is between measurements of one run that alternate, so that other programs on the machine slow both; the script says how
busy the machine was.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dec_export.bundle.store import Bundle
from dec_export.data.digits import compose, source_digits
from dec_export.engines.base import RunOptions
from dec_export.evaluation.cluster import LOCAL, RayComputer, join
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.plan import Plan, make_plan
from dec_export.evaluation.run import evaluate
from dec_export.evaluation.worker import Stage, Worker
from dec_export.progress import reporting

Numbers = dict[str, object]
ROUNDS = 3
SCALES = (0, 1)  # of the digits: the smallest and the largest change
MIB = 1 << 20


def main() -> None:
    bundle, out, *parts = sys.argv[1:]
    measures: dict[str, Callable[[Path, Path], Numbers]] = {
        "throughput": throughput,
        "memory": memory,
        "ray": two_workers,
    }
    found: Numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in parts or measures:
            before = os.getloadavg()[0]
            found[name] = {"load_before": round(before, 2), **measures[name](Path(bundle), Path(folder))}
            print(name, json.dumps(found[name], indent=1), flush=True)
            Path(out).write_text(json.dumps(found, indent=1) + "\n")


def throughput(bundle: Path, folder: Path) -> Numbers:
    """Compare an evaluation with the bare runs of its engines on images that are decoded and changed already."""
    data = write_digits(1000, folder / "throughput")
    found: Numbers = {}
    for name, baselines, limit in (("engine", (), None), ("engine and reference", ("torch",), 256)):
        options = _options(folder, baselines=baselines, limit=limit, strengths=(0.25,))
        plan = make_plan(Bundle.load(bundle), data, options)
        worker = Worker(plan)
        with ThreadPoolExecutor(2) as pool:
            stages = list(worker.stages(plan.starts, pool))
        pairs = [(_direct(worker, stages), _evaluated(bundle, data, options)) for _ in range(ROUNDS)]
        found[name] = {
            "direct_images_per_s": [round(len(plan.data) / direct, 1) for direct, _ in pairs],
            "evaluate_images_per_s": [round(len(plan.data) / evaluated, 1) for _, evaluated in pairs],
            "ratio": round(statistics.median(direct / evaluated for direct, evaluated in pairs), 3),
        }
    return found


def _direct(worker: Worker, stages: Sequence[Stage]) -> float:
    """Return the seconds in which the engines run on prepared images."""
    begin = time.perf_counter()
    for stage in stages:
        for model, inputs in zip(worker.models, stage.inputs, strict=True):
            model.logits(inputs, worker.plan.batch)
    return time.perf_counter() - begin


def _evaluated(bundle: Path, data: Path, options: EvaluationOptions) -> float:
    """Return the seconds that an evaluation takes from the first image to the last."""
    steps: dict[str, float] = {}

    def listen(name: str, seconds: float | None) -> None:
        if seconds is not None:
            steps[name] = seconds

    with reporting(listen):
        evaluate(bundle, data, options)
    return next(seconds for name, seconds in steps.items() if name[0].isdigit())


def memory(bundle: Path, folder: Path) -> Numbers:
    """Record the memory of evaluations of 1,000 and of 20,000 images, each in a new process."""
    found: Numbers = {}
    for count in (1000, 20_000):
        data = write_digits(count, folder / f"memory{count}")
        context = multiprocessing.get_context("spawn")
        results: multiprocessing.Queue[Numbers] = context.Queue()
        process = context.Process(target=_record, args=(bundle, data, folder, count, results))
        process.start()
        found[f"{count} images"] = results.get()
        process.join()
    return found


def _record(bundle: Path, data: Path, folder: Path, count: int, results: multiprocessing.Queue[Numbers]) -> None:
    """Evaluate in this process, and note its memory after each tenth of the images."""
    curve: dict[str, int] = {}
    options = _options(folder)

    def listen(text: str, _: float | None) -> None:
        if " finished" in text:
            finished = int(text.rpartition(" finished")[0].rpartition(" ")[2].replace(",", ""))
            curve.setdefault(f"{finished * 10 // count * 10} %", _resident())

    with _highest_memory() as highest, reporting(listen):
        evaluate(bundle, data, options)
    results.put({"resident_mib": curve, "highest_mib": max(highest)})


@contextmanager
def _highest_memory() -> Iterator[list[int]]:
    ended, found = threading.Event(), [_resident()]

    def watch() -> None:
        while not ended.wait(0.2):
            found.append(_resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _resident() -> int:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


def two_workers(bundle: Path, folder: Path) -> Numbers:
    """Compare two Ray workers with one, from the first finished chunks to the last, which leaves out their start."""
    data = write_digits(2000, folder / "ray")
    options = _options(folder, baselines=("torch",), cluster=LOCAL)
    plan = make_plan(Bundle.load(bundle), data, options)
    rates: dict[int, list[float]] = {1: [], 2: []}
    totals: dict[int, list[float]] = {1: [], 2: []}
    with join(Worker(plan), 1, LOCAL):
        for _ in range(ROUNDS):
            for workers in (1, 2):
                rate, total = _on_ray(plan, workers)
                rates[workers].append(rate)
                totals[workers].append(total)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "images_per_s": {str(workers): [round(rate, 1) for rate in found] for workers, found in rates.items()},
        "seconds_with_start": {str(workers): [round(total, 1) for total in found] for workers, found in totals.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_with_start": round(statistics.median(totals[1]) / statistics.median(totals[2]), 3),
    }


def _on_ray(plan: Plan, workers: int) -> tuple[float, float]:
    """Return the images that are finished in a second once all workers run, and the seconds of the whole work."""
    begin = time.perf_counter()
    times = [time.perf_counter() - begin for _ in RayComputer(Worker(plan), 1, workers).chunks(plan.starts)]
    first = len(times) // 4
    images = (len(times) - first) * plan.batch
    return images / (times[-1] - times[first - 1]), times[-1]


def write_digits(count: int, folder: Path) -> Path:
    """Write labelled digits into a folder for each class."""
    digits = compose(source_digits("test"), count, SCALES)
    for number in range(count):
        path = folder / str(digits.labels[number]) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.pixels[number]).save(path)
    return folder


def _options(folder: Path, **others: object) -> EvaluationOptions:
    fields = {"engine": "onnxruntime", "baselines": (), "run": RunOptions(threads=1), "journal": folder / "journal"}
    # The fields have types of their own.
    return EvaluationOptions(**{**fields, **others})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
