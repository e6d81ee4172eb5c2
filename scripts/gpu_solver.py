"""Run and time the plugin's kernels on a GPU, beside PyTorch eager, torch.compile and an unrolled TensorRT engine.

    python scripts/gpu_solver.py [--backbone deit_s] [--batch 1 8 32] [--out build/gpu-check] [--costs]

The kernels are launched as an engine launches them, from the same PTX, and are recorded in a CUDA graph, as Triton
Inference Server would run the engine. All solvers solve the same images and take turns in one run; the times are
medians. Every solve is compared with the float64 reference, and its error with that of a reference of the same
precision on the same GPU. With --costs, the program prints what a solve costs at least, for which it needs no GPU.
The exit status is 0 when the kernels are within the gate, 1 when they are not, and 2 when there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from dec_export.data.images import load_images
from dec_export.formats import Format
from dec_export.gpu import driver_version, find_gpu, why_no_gpu
from dec_export.libraries import installed_versions
from dec_export.lowering.model import LoweredModel, lower
from dec_export.onnx_export.operators import Operator
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.metrics import rel_l2
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference, preprocessing_of
from dec_export.report.tables import table

if TYPE_CHECKING:  # A type checker sees the source tree, where the package lies in the folder `plugins`
    from plugins.cost import Cost, cost_of
else:
    from dec_plugins.cost import Cost, cost_of
from solver_timing.solvers import COMPILED, EAGER, KERNELS, PRECISIONS, Run, Subject, eager, runs_of, solvers_of

Phis = list[NDArray[np.floating]]
# One multiplication takes this many products of tensor cores; float32 needs three of TF32.
PRODUCTS = {"fp32": 3, "fp16": 1}


@dataclass(frozen=True)
class Peaks:
    """What a GPU reaches: products in FLOP/s for each precision (TF32 for fp32), and copies in bytes/s."""

    flops: Mapping[str, float]
    bytes: float


@dataclass(frozen=True)
class Floor:
    """The float64 phis, and how far the reference in each precision is from them (relative L2, one for each phi)."""

    exact: Phis
    errors: Mapping[str, list[float]]


@dataclass(frozen=True)
class Result:
    """What was measured of a solver with one batch.

    milliseconds: time of a solve. times_eager, times_compiled: how many times longer PyTorch eager and torch.compile
    take. ratio_to_floor: the largest distance of a phi from float64, over that of the reference in the same precision.
    share: the part of the limit that binds, which is `bound_by`, products or memory. passed: whether the ratio is
    within the gate.
    """

    solver: str
    precision: str
    batch: int
    milliseconds: float
    times_eager: float
    times_compiled: float
    ratio_to_floor: float
    share: float
    bound_by: str
    passed: bool

    def as_json(self) -> dict[str, object]:
        """The result as solver.json has it."""
        return {
            "solver": self.solver,
            "precision": self.precision,
            "batch": self.batch,
            "ms": self.milliseconds,
            "times eager": self.times_eager,
            "times compiled": self.times_compiled,
            "ratio to floor": self.ratio_to_floor,
            "share": self.share,
            "bound by": self.bound_by,
            "passed": self.passed,
        }

    def cells(self) -> dict[str, str]:
        """The result as a row of the table, under the names of its columns."""
        return {
            "solver": self.solver,
            "precision": self.precision,
            "batch": str(self.batch),
            "ms": f"{self.milliseconds:.2f}",
            "times eager": f"{self.times_eager:.1f}",
            "times compiled": f"{self.times_compiled:.1f}",
            "ratio to floor": f"{self.ratio_to_floor:.2f}",
            "share": f"{self.share:.0%}",
            "bound by": self.bound_by,
        }


def solve_operators(lowered: LoweredModel) -> list[Operator]:
    """The `dec` operators of the solves of one image, in order."""
    return [operator for solve in OperatorCanonicalizer(lowered.canonicalizer).solves for operator in solve.operators()]


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The time of one run on the GPU in milliseconds, as the mean of `repeats` runs in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def measured_peaks() -> Peaks:
    """What this GPU reaches in large products, and in a copy, whose bytes are counted as read and as written."""
    flops = {}
    torch.backends.cuda.matmul.allow_tf32 = True
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        flops[precision] = 2 * 8192**3 / 1e-3 / min(milliseconds(partial(torch.matmul, a, b), 5) for _ in range(4))
    torch.backends.cuda.matmul.allow_tf32 = False
    large = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(large)
    copied = 2 * large.numel() / 1e-3 / min(milliseconds(lambda: other.copy_(large), 5) for _ in range(4))
    return Peaks(flops, copied)


def floor_of(model: DecModel, images: Tensor) -> Floor:
    """The float64 phis of the images, and the errors of the reference in each precision."""
    with torch.inference_mode():
        exact = [phi.cpu().numpy() for phi in eager(copy.deepcopy(model).double())(images.double())]
        errors: dict[str, list[float]] = {}
        for precision in PRECISIONS:
            narrow = copy.deepcopy(model)
            for network in narrow.DEM.networks:
                network.to(precision.torch)
            found = [phi.float().cpu().numpy() for phi in eager(narrow)(images)]
            errors[precision] = [rel_l2(one, truth) for one, truth in zip(found, exact, strict=True)]
    return Floor(exact, errors)


def worst_ratio(phis: Sequence[Tensor], floor: Floor, precision: str) -> float:
    """The largest distance of a phi from float64, over that of the reference in this precision."""
    found = [phi.float().cpu().numpy() for phi in phis]
    errors = floor.errors[precision]
    return max(rel_l2(one, truth) / error for one, truth, error in zip(found, floor.exact, errors, strict=True))


def times_of(runs: Mapping[Subject, Run], rounds: int) -> dict[Subject, float]:
    """The median time of every run in milliseconds; the runs take turns."""
    times: dict[Subject, list[float]] = {subject: [] for subject in runs}
    for _ in range(rounds):
        for subject, run in runs.items():
            times[subject].append(milliseconds(run, 3))
    return {subject: median(values) for subject, values in times.items()}


def limit_of(cost: Cost, precision: str, peaks: Peaks) -> tuple[str, float]:
    """Which limit binds a solve of this cost, products or memory, and the milliseconds that it then takes at least."""
    limits = {
        "products": 1e3 * PRODUCTS[precision] * cost.flop / peaks.flops[precision],
        "memory": 1e3 * cost.bytes / peaks.bytes,
    }
    return max(limits.items(), key=lambda limit: limit[1])


def measure(recipe: Recipe, batches: list[int], rounds: int, console: Console) -> list[Result]:
    """Measure every solver with every batch."""
    # TF32 keeps 10 bits of the 23 of float32: with it, the floor and the times would be those of another format.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = create_reference(recipe)
    lowered: dict[str, LoweredModel] = {precision: lower(model, Format.FP32, precision) for precision in PRECISIONS}
    operators: dict[str, list[Operator]] = {precision: solve_operators(lowered[precision]) for precision in PRECISIONS}
    model, peaks = model.cuda().eval(), measured_peaks()
    pictures = load_images(preprocessing_of(recipe), 8).array
    results = []
    with torch.inference_mode():
        solvers = solvers_of(model, lowered, batches, console)
        for batch in batches:
            images = torch.from_numpy(np.resize(pictures, (batch, *pictures.shape[1:]))).cuda()
            floor = floor_of(model, images)
            runs = runs_of(solvers, images)
            times = times_of(runs, rounds)
            for subject, run in runs.items():
                bound_by, least = limit_of(cost_of(operators[subject.precision], batch), subject.precision, peaks)
                ratio = worst_ratio(run(), floor, subject.precision)
                results.append(
                    Result(
                        *subject,
                        batch,
                        milliseconds=times[subject],
                        times_eager=times[EAGER] / times[subject],
                        times_compiled=times[COMPILED] / times[subject],
                        ratio_to_floor=ratio,
                        share=least / times[subject],
                        bound_by=bound_by,
                        passed=bool(ratio <= MAX_RATIO),
                    )
                )
    return results


def print_costs(recipe: Recipe, batches: list[int], console: Console) -> None:
    """Print what a solve costs at least, for each precision and batch."""
    model = create_reference(recipe)
    rows = []
    for precision in PRECISIONS:
        operators = solve_operators(lower(model, Format.FP32, precision))
        for batch in batches:
            cost = cost_of(operators, batch)
            rows.append(
                [precision, str(batch), str(len(operators)), f"{cost.flop / 1e9:.1f}", f"{cost.bytes / 1e6:.0f}"]
            )
    console.print(table(f"{recipe.name}: one solve", ["precision", "batch", "kernels", "GFLOP", "MB"], rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_s", help="name of a shipped recipe (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8, 32], help="numbers of images in a solve (default: 1 8 32)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="number of turns of every solver (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu-check"), help="folder for solver.json (default: %(default)s)"
    )
    parser.add_argument(
        "--costs", action="store_true", help="print only what a solve costs at least, which needs no GPU"
    )
    return parser


def main() -> None:
    """Run the command."""
    options = _parser().parse_args()
    console, recipe = Console(width=140), Recipe.named(options.backbone)
    if options.costs:
        print_costs(recipe, options.batch, console)
        return
    gpu = find_gpu()
    if gpu is None:
        console.print(f"There is no GPU to run the kernels on: {why_no_gpu()}.")
        sys.exit(2)
    results = measure(recipe, options.batch, options.rounds, console)
    rows = [result.cells() for result in results]
    title = f"{options.backbone}'s solver on {gpu.name}, driver {driver_version()}"
    console.print(table(title, list(rows[0]), [row.values() for row in rows]))
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "gpu": gpu.name,
        "driver": driver_version(),
        "versions": installed_versions(),
        "rows": [result.as_json() for result in results],
    }
    (options.out / "solver.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(result.passed for result in results if result.solver == KERNELS) else 1)


if __name__ == "__main__":
    main()
