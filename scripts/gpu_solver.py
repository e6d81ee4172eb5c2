"""Run and time the plugin's kernels on a GPU, beside PyTorch eager, torch.compile and an unrolled TensorRT engine.

    python scripts/gpu_solver.py [--backbone deit_s] [--batch 1 8 32] [--out build/gpu-check] [--costs]

The kernels are launched as an engine launches them, from the same PTX, and recorded in a CUDA graph, as Triton
Inference Server would run the engine. All subjects solve the same images; times are medians of one run in which they
take turns. Every solve is compared with the float64 reference, beside the float32 reference on the same GPU. `--costs`
prints what a solve costs at least, and needs no GPU. Exit 0: the kernels are within the gate; 1: they are not; 2: there
is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from dec_export.data.images import load_images
from dec_export.errors import DecExportError
from dec_export.formats import Format
from dec_export.gpu import driver_version, find_gpu, why_no_gpu
from dec_export.libraries import installed_versions
from dec_export.lowering.model import LoweredCanonicalizer, LoweredModel, lower
from dec_export.onnx_export.operators import Operator
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.onnx_export.tracing import export_phis
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.metrics import rel_l2
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference, preprocessing_of
from dec_export.report.tables import table

if TYPE_CHECKING:  # a type checker sees the source tree, where the package lies in the folder `plugins`
    from plugins.chain import run_solve
    from plugins.cost import cost_of
    from plugins.cuda import CudaLauncher
else:
    from dec_plugins.chain import run_solve
    from dec_plugins.cost import cost_of
    from dec_plugins.cuda import CudaLauncher

Solver = Callable[[Tensor], list[Tensor]]
Phis = list[NDArray[Any]]
PRECISIONS = (Format.FP32, Format.FP16)
KERNELS = "kernels"
# Products of one float32 multiplication: three of TF32.
PRODUCTS = {"fp32": 3, "fp16": 1}
COLUMNS = ("solver", "precision", "batch", "ms", "times eager", "times compiled", "ratio to floor", "share", "bound by")


def solve_operators(lowered: LoweredModel) -> list[Operator]:
    """Every `dec` operator of one image's solves, in order."""
    return [operator for solve in OperatorCanonicalizer(lowered.canonicalizer).solves for operator in solve.operators()]


def eager(model: DecModel) -> Solver:
    """The reference's solver as PyTorch runs it."""

    def solve(images: Tensor) -> list[Tensor]:
        return [axis for phi in model.DEM(images) for axis in phi]

    return solve


def kernels(lowered: LoweredModel) -> Solver:
    """The chain of compiled kernels."""
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
    """The unrolled solver as a TensorRT engine."""
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
        raise DecExportError(f"{flavour.label} cannot load on this GPU the engine that it built.")
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


def recorded(solve: Solver, images: Tensor) -> Callable[[], list[Tensor]]:
    """A solve as a CUDA graph, which launches without Python."""
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


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """The time of one run on the GPU, the mean of `repeats` in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def peaks() -> dict[str, float]:
    """What this GPU reaches: TF32 and float16 products in FLOP/s, and a copy in bytes/s, read and written."""
    found = {}
    torch.backends.cuda.matmul.allow_tf32 = True
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        found[precision] = 2 * 8192**3 / 1e-3 / min(milliseconds(partial(torch.matmul, a, b), 5) for _ in range(4))
    torch.backends.cuda.matmul.allow_tf32 = False
    large = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(large)
    found["bytes"] = 2 * large.numel() / 1e-3 / min(milliseconds(lambda: other.copy_(large), 5) for _ in range(4))
    return found


def floors(model: DecModel, images: Tensor) -> tuple[Phis, dict[str, list[float]]]:
    """The float64 phis, and how far the reference in each precision is from them."""
    with torch.inference_mode():
        exact = [phi.cpu().numpy() for phi in eager(copy.deepcopy(model).double())(images.double())]
        noise: dict[str, list[float]] = {}
        for precision in PRECISIONS:
            narrow = copy.deepcopy(model)
            for network in narrow.DEM.networks:
                network.to(precision.torch)
            found = [phi.float().cpu().numpy() for phi in eager(narrow)(images)]
            noise[precision] = [rel_l2(one, truth) for one, truth in zip(found, exact, strict=True)]
    return exact, noise


def worst_ratio(phis: list[Tensor], exact: Phis, noise: list[float]) -> float:
    """The largest distance to float64, over the reference's own."""
    found = [phi.float().cpu().numpy() for phi in phis]
    return max(rel_l2(one, truth) / floor for one, truth, floor in zip(found, exact, noise, strict=True))


def subjects(
    model: DecModel, lowered: dict[str, LoweredModel], batches: list[int], folder: Path, console: Console
) -> dict[tuple[str, str], Solver]:
    """What takes turns; an engine that cannot be had is a line of its own on the console."""
    compiled = torch.compile(copy.deepcopy(model).DEM)
    found: dict[tuple[str, str], Solver] = {
        ("PyTorch eager", "fp32"): eager(model),
        ("torch.compile", "fp32"): lambda images: [axis for phi in compiled(images) for axis in phi],
    }
    for precision in PRECISIONS:
        # On a copy, which goes to the GPU; exporting needs the model on the CPU.
        found[KERNELS, precision] = kernels(copy.deepcopy(lowered[precision]))
    for name in ("tensorrt", "tensorrt-rtx"):
        place = folder / name
        place.mkdir()
        try:
            found[f"unrolled, {name}", "fp32"] = engine(lowered["fp32"], name, batches, place)
        except DecExportError as error:
            console.print(f"unrolled, {name}: {error}")
    return found


def measure(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """One row for each subject and batch."""
    # TF32 keeps 10 bits of a float32's 23: the floor, and the time, of another format.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    recipe = Recipe.named(arguments.backbone)
    model = create_reference(recipe)
    lowered: dict[str, LoweredModel] = {precision: lower(model, Format.FP32, precision) for precision in PRECISIONS}
    operators: dict[str, list[Operator]] = {precision: solve_operators(lowered[precision]) for precision in PRECISIONS}
    model, limits = model.cuda().eval(), peaks()
    pictures = load_images(preprocessing_of(recipe), 8).array
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        solvers = subjects(model, lowered, arguments.batch, Path(folder), console)
        for batch in arguments.batch:
            images = torch.from_numpy(np.resize(pictures, (batch, *pictures.shape[1:]))).cuda()
            exact, noise = floors(model, images)
            runs: dict[tuple[str, str], Callable[[], list[Tensor]]] = {}
            for key, solve in solvers.items():
                for _ in range(3):
                    solve(images)
                as_it_comes = key[0] in ("PyTorch eager", "torch.compile")
                runs[key] = partial(solve, images) if as_it_comes else recorded(solve, images)
            times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
            for _ in range(arguments.rounds):
                for key, run in runs.items():
                    times[key].append(milliseconds(run, 3))
            for key, run in runs.items():
                cost = cost_of(operators[key[1]], batch)
                bounds = {
                    "products": 1e3 * PRODUCTS[key[1]] * cost.flop / limits[key[1]],
                    "memory": 1e3 * cost.bytes / limits["bytes"],
                }
                bound = max(bounds, key=lambda name: bounds[name])
                ratio = worst_ratio(run(), exact, noise[key[1]])
                rows.append(
                    {
                        "solver": key[0],
                        "precision": key[1],
                        "batch": batch,
                        "ms": median(times[key]),
                        "times eager": median(times["PyTorch eager", "fp32"]) / median(times[key]),
                        "times compiled": median(times["torch.compile", "fp32"]) / median(times[key]),
                        "ratio to floor": ratio,
                        "share": bounds[bound] / median(times[key]),
                        "bound by": bound,
                        "passed": bool(ratio <= MAX_RATIO),
                    }
                )
    return rows


def costs(arguments: argparse.Namespace, console: Console) -> None:
    """What a solve costs at least, for each precision and batch."""
    model = create_reference(Recipe.named(arguments.backbone))
    rows = []
    for precision in PRECISIONS:
        operators = solve_operators(lower(model, Format.FP32, precision))
        for batch in arguments.batch:
            cost = cost_of(operators, batch)
            rows.append(
                [precision, str(batch), str(len(operators)), f"{cost.flop / 1e9:.1f}", f"{cost.bytes / 1e6:.0f}"]
            )
    console.print(table(f"{arguments.backbone}: one solve", ["precision", "batch", "kernels", "GFLOP", "MB"], rows))


def shown(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    formats = {"ms": "{:.2f}", "times eager": "{:.1f}", "times compiled": "{:.1f}", "ratio to floor": "{:.2f}"}
    formats["share"] = "{:.0%}"
    return [formats.get(name, "{}").format(row[name]) for name in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backbone", default="deit_s")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="folder for solver.json")
    parser.add_argument("--costs", action="store_true", help="print what a solve costs at least, and end")
    arguments = parser.parse_args()
    console = Console(width=140)
    if arguments.costs:
        costs(arguments, console)
        return
    gpu = find_gpu()
    if gpu is None:
        console.print(f"There is no GPU to run the kernels on: {why_no_gpu()}.")
        sys.exit(2)
    rows = measure(arguments, console)
    title = f"{arguments.backbone}'s solver on {gpu.name}, driver {driver_version()}"
    console.print(table(title, list(COLUMNS), [shown(row) for row in rows]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = {"gpu": gpu.name, "driver": driver_version(), "versions": installed_versions(), "rows": rows}
    (arguments.out / "solver.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(row["passed"] for row in rows if row["solver"] == KERNELS) else 1)


if __name__ == "__main__":
    main()
