"""The highest speed of this machine, which is measured in the same run as the engines."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnx import TensorProto, helper

from dec_export.bench.report import Machine, Peaks

_SIZE = 2048
_COPY_BYTES = 256 << 20
_REPEATS = 5


def measure_peaks() -> Peaks:
    """Measure floating-point operations per second of a large float32 matrix product, and bytes per second of a copy.

    Both run with PyTorch's number of threads, and the fastest of several runs counts. The product is measured in
    PyTorch and in ONNX Runtime, because the processor decides which of them is faster. The copy counts bytes that are
    read and bytes that are written.
    """
    a, b = torch.rand(_SIZE, _SIZE), torch.rand(_SIZE, _SIZE)
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    session, feed = _matrix_product(torch.get_num_threads()), {"a": a.numpy(), "b": b.numpy()}
    products = (lambda: torch.mm(a, b), lambda: session.run(None, feed))
    product = min(_seconds(run) for run in products for _ in range(_REPEATS))
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(_REPEATS))
    return Peaks(flops=2 * _SIZE**3 / product, bytes=2 * _COPY_BYTES / copy)


def _matrix_product(threads: int) -> onnxruntime.InferenceSession:
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIZE, _SIZE]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def describe() -> Machine:
    """Return the processor, the number of cores and the vector instructions."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count(),
        pytorch_instructions=torch.backends.cpu.get_cpu_capability(),
        platform=platform.platform(terse=True),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # Only Linux has this file.
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
