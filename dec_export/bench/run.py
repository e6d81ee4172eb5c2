"""The function of `dec-export bench`, which times engines and baselines in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from dec_export.bench import machine
from dec_export.bench.graph_cost import graph_cost
from dec_export.bench.memory import peak_memory
from dec_export.bench.report import BatchTimings, BenchReport, EngineTiming, PeakMemory, Peaks, SubjectTiming
from dec_export.bench.subjects import Run, names_of, scratch, subject
from dec_export.bench.timing import interleave, ratio, summarise
from dec_export.bundle.store import Bundle
from dec_export.data.images import load_images
from dec_export.engines.registry import engine_spec
from dec_export.errors import DecExportError
from dec_export.libraries import installed_versions
from dec_export.progress import tell

_LARGEST_BATCH = 1024

# The key is a subject, and the value holds the seconds of its rounds.
_Seconds = Mapping[str, list[float]]


def bench(
    bundle: Bundle,
    engines: Sequence[str] = ("onnxruntime",),
    *,
    baselines: Sequence[str] = ("eager", "plain"),
    batches: Sequence[int] = (1, 8),
    rounds: int = 11,
    threads: int | None = None,
    memory: bool = True,
) -> BenchReport:
    """Time engines and baselines of `subjects.BASELINES` in turns at every batch, and measure their peak memory.

    The memory is that of a new process for each subject, at the largest batch. `progress.reporting` reports every step.
    Raises DecExportError for unknown names and numbers out of range, and the error of an engine that cannot run here.
    """
    _check(batches, rounds)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    names = names_of(engines, baselines)
    with scratch() as folder:
        runs = _prepare(bundle, names, threads, Path(folder))
        seconds = {batch: _time(bundle, runs, batch, rounds) for batch in batches}
        # The peaks are measured last, because the large buffers that this frees change how the C library treats the
        # buffers of eager PyTorch.
        tell("the machine's peaks")
        peaks = machine.measure_peaks()
        used = _memory(bundle, names, max(batches), threads, Path(folder)) if memory else {}
    return BenchReport(
        bundle=str(bundle.path),
        recipe=bundle.recipe.name,
        precision=bundle.manifest.precision,
        machine=machine.describe(),
        versions=_versions(engines),
        threads=threads,
        rounds=rounds,
        peaks=peaks,
        batches=tuple(_at_batch(bundle, batch, found, engines, peaks) for batch, found in seconds.items()),
        peak_memory_bytes=used,
        peak_memory_batch=max(batches) if memory else None,
    )


def _check(batches: Sequence[int], rounds: int) -> None:
    if not batches or not all(1 <= batch <= _LARGEST_BATCH for batch in batches):
        raise DecExportError(f"Batches must be from 1 to {_LARGEST_BATCH}, found {', '.join(map(str, batches))}.")
    if rounds < 1:
        raise DecExportError(f"There must be at least 1 round, found {rounds}.")


def _prepare(bundle: Bundle, names: Sequence[str], threads: int, folder: Path) -> dict[str, Run]:
    runs = {}
    for name in names:
        tell(f"prepare {name}")
        runs[name] = subject(bundle, name, threads, folder)
    return runs


def _time(bundle: Bundle, runs: Mapping[str, Run], batch: int, rounds: int) -> _Seconds:
    tell(f"batch {batch}")
    images = _images(bundle, batch)
    return interleave({name: partial(run, images) for name, run in runs.items()}, rounds)


def _images(bundle: Bundle, batch: int) -> NDArray[np.float32]:
    array = load_images(bundle.preprocessing, batch).array
    return np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))


def _memory(
    bundle: Bundle, names: Sequence[str], batch: int, threads: int, folder: Path
) -> dict[str, PeakMemory | None]:
    used = {}
    for name in names:
        tell(f"memory of {name}")
        used[name] = peak_memory(bundle, name, batch, threads, folder)
    return used


def _versions(engines: Sequence[str]) -> dict[str, str]:
    """Return the versions of the libraries that every comparison uses, and of those that the engines use."""
    libraries = tuple(library for name in engines for library in engine_spec(name).libraries)
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, **installed_versions(libraries)}


def _at_batch(bundle: Bundle, batch: int, seconds: _Seconds, engines: Sequence[str], peaks: Peaks) -> BatchTimings:
    cost = graph_cost(onnx.load(bundle.onnx_path), batch)
    rows: dict[str, EngineTiming | SubjectTiming] = {}
    for name, values in seconds.items():
        timing = summarise(values)
        row = {**vars(timing), "images_per_second": batch / timing.median}
        if name not in engines:
            rows[name] = SubjectTiming(**row)
            continue
        # A model without canonicalizers has no overhead.
        plain = seconds.get(f"plain-{name}") if bundle.recipe.layers else None
        rows[name] = EngineTiming(
            **row,
            ratio_to={other: ratio(found, values) for other, found in seconds.items() if other != name},
            overhead=None if plain is None else ratio(values, plain) - 1,
            share_of_peak_flops=cost.flops / timing.median / peaks.flops,
        )
    return BatchTimings(batch=batch, graph=cost, subjects=rows)
