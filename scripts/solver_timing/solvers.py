"""The solvers that are compared on a GPU: PyTorch's, the plugin's kernels, and unrolled TensorRT engines."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import onnx
import torch
from rich.console import Console
from torch import Tensor

from dec_export.errors import DecExportError
from dec_export.formats import Format
from dec_export.gpu import find_gpu
from dec_export.lowering.model import LoweredCanonicalizer, LoweredModel
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.onnx_export.tracing import export_phis
from dec_export.reference.model import DecModel

if TYPE_CHECKING:  # A type checker sees the source tree, where the package lies in the folder `plugins`
    from plugins.chain import run_solve
    from plugins.cuda import CudaLauncher
else:
    from dec_plugins.chain import run_solve
    from dec_plugins.cuda import CudaLauncher

# From images (B, 3, H, W) to both axes of every phi.
Solver = Callable[[Tensor], list[Tensor]]
Run = Callable[[], list[Tensor]]
PRECISIONS = (Format.FP32, Format.FP16)
KERNELS = "kernels"


class Subject(NamedTuple):
    """A solver and the precision in which it solves."""

    solver: str
    precision: str


EAGER = Subject("PyTorch eager", Format.FP32)
COMPILED = Subject("torch.compile", Format.FP32)


def eager(model: DecModel) -> Solver:
    """The solver of the reference, as PyTorch runs it without compiling."""

    def solve(images: Tensor) -> list[Tensor]:
        return [axis for phi in model.DEM(images) for axis in phi]

    return solve


def kernels(lowered: LoweredModel) -> Solver:
    """The solver as a chain of the plugin's compiled kernels."""
    launch, canonicalizer = CudaLauncher(), lowered.canonicalizer.cuda()
    assert isinstance(canonicalizer, LoweredCanonicalizer)
    layers = [
        (solve.function(), {name: value.cuda() for name, value in solve.weights().items()})
        for solve in OperatorCanonicalizer(canonicalizer).solves
    ]

    def solve(images: Tensor) -> list[Tensor]:
        prepared = canonicalizer.prepared(images)
        phis = [run_solve(function, {"image": prepared, **weights}, launch) for function, weights in layers]
        return [phi[:, axis] for phi in phis for axis in range(2)]

    return solve


def engine(lowered: LoweredModel, flavour_name: str, batches: list[int], folder: Path) -> Solver:
    """The unrolled solver as a TensorRT engine, which is built in the folder `folder`.

    DecExportError when this machine cannot build or load the engine.
    """
    from dec_export.engines.tensorrt.build import build_plan
    from dec_export.engines.tensorrt.flavours import FLAVOURS, load_backend
    from dec_export.engines.tensorrt.options import BuildOptions

    flavour = FLAVOURS[flavour_name]
    path = folder / "solver.onnx"
    onnx.save(export_phis(lowered), path)
    options = BuildOptions(batch=(min(batches), max(batches), max(batches)))
    entry = build_plan(flavour, path, folder, options, gpu=find_gpu())
    backend = load_backend(flavour)
    plan = (folder / entry.file).read_bytes()
    loaded = backend.trt.Runtime(backend.trt.Logger(backend.trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    if loaded is None:
        raise DecExportError(f"{flavour.label} built an engine for this GPU, but cannot load it.")
    context = loaded.create_execution_context()
    names = [loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)]

    def solve(images: Tensor) -> list[Tensor]:
        context.set_input_shape("image", tuple(images.shape))
        results = [torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in names[1:]]
        for name, tensor in zip(names, [images, *results], strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return results

    return solve


def recorded(solve: Solver, images: Tensor) -> Run:
    """The solve of these images as a CUDA graph, whose kernels are launched without Python."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            solve(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = solve(images)

    def replay() -> list[Tensor]:
        graph.replay()
        return results

    return replay


def solvers_of(
    model: DecModel, lowered: Mapping[str, LoweredModel], batches: list[int], console: Console
) -> dict[Subject, Solver]:
    """The solvers that take turns; why an engine cannot be built is printed on the console."""
    compiled = torch.compile(copy.deepcopy(model).DEM)
    found: dict[Subject, Solver] = {
        EAGER: eager(model),
        COMPILED: lambda images: [axis for phi in compiled(images) for axis in phi],
    }
    for precision in PRECISIONS:
        # The kernels need the model on the GPU and exporting needs it on the CPU, so this takes a copy.
        found[Subject(KERNELS, precision)] = kernels(copy.deepcopy(lowered[precision]))
    for name in ("tensorrt", "tensorrt-rtx"):
        try:
            with tempfile.TemporaryDirectory() as folder:
                found[Subject(f"unrolled, {name}", Format.FP32)] = engine(
                    lowered[Format.FP32], name, batches, Path(folder)
                )
        except DecExportError as error:
            console.print(f"unrolled, {name}: {error}")
    return found


def runs_of(solvers: Mapping[Subject, Solver], images: Tensor) -> dict[Subject, Run]:
    """Every solver as a function that solves these images; PyTorch's run as they are, the others as CUDA graphs."""
    runs: dict[Subject, Run] = {}
    for subject, solve in solvers.items():
        for _ in range(3):
            solve(images)
        runs[subject] = partial(solve, images) if subject in (EAGER, COMPILED) else recorded(solve, images)
    return runs
