"""Compare ONNX Runtime with the eager reference, interleaved in one process, and print medians and ratios.

    python scripts/bench_onnxruntime.py [--backbone deit_s] [--batch 1] [--threads 2] [--runs 15]

`eager reference` computes the model as published; `plain backbone` is timm's model without DEC, in ONNX Runtime too.

Eager PyTorch depends on the C library's allocator: as it comes, it returns large buffers to the system and faults
them in again at every operation. So everything is measured twice, as it comes and told to keep its memory; the second
is the fairer comparison, since ONNX Runtime keeps its memory by itself. It depends on the vector instructions that it
picks, too: on some AMD processors its AVX-512 `log1p`, inside Softplus, takes ten times as long as its AVX2 one;
ATEN_CPU_CAPABILITY=avx2 in the environment gives eager PyTorch its best there.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from dec_export.images import load_images
from dec_export.lowering.model import lower
from dec_export.onnx_export.export import export, save
from dec_export.recipe import Recipe
from dec_export.reference.model import create_reference, preprocessing_of


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    recipe = Recipe.named(options.backbone)
    image = load_images(preprocessing_of(recipe), options.batch).array
    image = np.resize(image, (options.batch, *image.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(recipe, image, Path(folder), options.threads)
        print(
            f"DEC {options.backbone}, batch {options.batch}, {options.threads} threads, "
            f"{options.runs} interleaved runs; "
            f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
            f"ONNX Runtime {onnxruntime.__version__}"
        )
        _report("allocator as it comes", _interleave(contenders, options.runs))
        if _keep_heap():
            _report("allocator told to keep its memory", _interleave(contenders, options.runs))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_s")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    return parser.parse_args()


def _contenders(recipe: Recipe, image: np.ndarray, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    reference = create_reference(recipe)
    save(export(lower(reference)), folder / "dec.onnx")
    plain = reference.backbone
    torch.onnx.export(
        plain,
        (torch.from_numpy(image),),
        folder / "plain.onnx",
        dynamo=True,
        opset_version=18,
        input_names=["image"],
        verbose=False,
    )
    sessions = {name: _session(folder / f"{name}.onnx", threads) for name in ("dec", "plain")}
    tensor = torch.from_numpy(image)

    def eager() -> object:
        with torch.inference_mode():
            return reference(tensor)

    return {
        "eager reference": eager,
        "ONNX Runtime": lambda: sessions["dec"].run(None, {"image": image}),
        "plain backbone, ONNX Runtime": lambda: sessions["plain"].run(None, {"image": image}),
    }


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads that spin would take the cores from whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _interleave(contenders: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Time every contender in turn, so that a drift of the machine meets all of them."""
    for run in contenders.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _keep_heap() -> bool:
    """Tell glibc to keep freed memory; False where the C library is another one."""
    library = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None) if library else None
    trim_threshold, mmap_threshold, one_gib = -1, -3, 1 << 30
    return mallopt is not None and all(mallopt(option, one_gib) for option in (trim_threshold, mmap_threshold))


def _report(condition: str, seconds: dict[str, list[float]]) -> None:
    print(f"- {condition}")
    for name, values in seconds.items():
        low, high = min(values) * 1e3, max(values) * 1e3
        print(f"  {name:30} median {statistics.median(values) * 1e3:7.1f} ms   ({low:.1f} - {high:.1f})")
    ratios = [eager / ort for eager, ort in zip(seconds["eager reference"], seconds["ONNX Runtime"], strict=True)]
    print(f"  eager reference / ONNX Runtime: {statistics.median(ratios):.2f}  ({min(ratios):.2f} - {max(ratios):.2f})")


if __name__ == "__main__":
    main()
