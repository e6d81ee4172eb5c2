"""`dec-export bench`: engines and baselines in one run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from dec_export.bench import machine
from dec_export.bench.graph_cost import graph_cost
from dec_export.bench.memory import peak_memory
from dec_export.bench.subjects import Run, names_of, scratch, subject
from dec_export.bench.timing import interleave, ratio, summarise
from dec_export.bundle.store import Bundle
from dec_export.data.images import load_images
from dec_export.errors import DecExportError
from dec_export.progress import tell

SCHEMA_VERSION = 1
_LARGEST_BATCH = 1024


def bench(
    bundle: Bundle,
    engines: Sequence[str] = ("onnxruntime",),
    *,
    baselines: Sequence[str] = ("eager", "plain"),
    batches: Sequence[int] = (1, 8),
    rounds: int = 11,
    threads: int | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """Time engines and baselines of `subjects.BASELINES`, interleaved, at every batch; measure peak memory beside.

    The memory is that of a fresh process for each subject, at the largest batch. Raises DecExportError for names and
    numbers that make no sense, and what an engine raises that cannot run here.
    """
    _check(batches, rounds)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    names = names_of(engines, baselines)
    with scratch() as folder:
        runs = {}
        for name in names:
            tell(f"prepare {name}")
            runs[name] = subject(bundle, name, threads, Path(folder))
        results = []
        for batch in batches:
            tell(f"batch {batch}")
            results.append(_at_batch(bundle, runs, batch, rounds, engines))
        # Last: the large buffers that it frees would change how the C library treats those of eager PyTorch.
        tell("the machine's peaks")
        peaks = machine.measure_peaks()
        _add_shares(results, peaks)
        used = _memory(bundle, names, max(batches), threads, Path(folder)) if memory else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": str(bundle.path),
        "recipe": bundle.recipe.name,
        "precision": bundle.manifest.precision,
        "machine": machine.describe(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "threads": threads,
        "rounds": rounds,
        "peaks": peaks,
        "batches": results,
        "peak_memory_bytes": used,
        "peak_memory_batch": max(batches) if memory else None,
    }


def _check(batches: Sequence[int], rounds: int) -> None:
    if not batches or not all(1 <= batch <= _LARGEST_BATCH for batch in batches):
        raise DecExportError(f"Batches must be from 1 to {_LARGEST_BATCH}, found {', '.join(map(str, batches))}.")
    if rounds < 1:
        raise DecExportError(f"There must be at least 1 round, found {rounds}.")


def _at_batch(bundle: Bundle, runs: dict[str, Run], batch: int, rounds: int, engines: Sequence[str]) -> dict[str, Any]:
    images = _images(bundle, batch)
    seconds = interleave({name: partial(run, images) for name, run in runs.items()}, rounds)
    cost = graph_cost(onnx.load(bundle.onnx_path), batch)
    rows: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        timing = summarise(values)
        rows[name] = {**timing.as_dict(), "images_per_second": batch / timing.median}
        if name in engines:
            rows[name]["ratio_to"] = {other: ratio(s, values) for other, s in seconds.items() if other != name}
            # Without canonicalizers there is nothing that could cost more.
            plain = seconds.get(f"plain-{name}") if bundle.recipe.layers else None
            rows[name]["overhead"] = None if plain is None else ratio(values, plain) - 1
    return {"batch": batch, "graph": cost, "subjects": rows}


def _add_shares(results: Sequence[dict[str, Any]], peaks: dict[str, float]) -> None:
    """How much of what the machine can do each engine does."""
    for entry in results:
        for row in entry["subjects"].values():
            if "ratio_to" in row:
                row["share_of_peak_flops"] = entry["graph"]["flops"] / row["median"] / peaks["flops"]


def _images(bundle: Bundle, batch: int) -> NDArray[np.float32]:
    array = load_images(bundle.preprocessing, batch).array
    return np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))


def _memory(
    bundle: Bundle, names: Sequence[str], batch: int, threads: int, folder: Path
) -> dict[str, dict[str, int] | None]:
    files = {"onnxruntime": bundle.onnx_path, "plain-onnxruntime": folder / "plain.onnx"}
    size = bundle.recipe.backbone.image_size
    used = {}
    for name in names:
        tell(f"memory of {name}")
        used[name] = peak_memory(name, files.get(name, bundle.path), size, batch, threads)
    return used
