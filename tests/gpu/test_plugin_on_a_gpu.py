"""The plugin's kernels on a real GPU, launched as an engine launches them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dec_export.formats import Format
from dec_export.lowering.model import LoweredModel, lower
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.metrics import rel_l2
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_plugins.chain import run_solve
from tests.conftest import photographs, randomised

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _float32_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid TF32 in cuDNN's convolutions, because its 10 bits are no noise floor for float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture(scope="module")
def model() -> DecModel:
    return randomised(create_reference(Recipe.named("deit_s"))).eval()


def solver(lowered: LoweredModel) -> Callable[[Tensor], list[Tensor]]:
    from dec_plugins.cuda import CudaLauncher

    launch, canonicalizer = CudaLauncher(), copy.deepcopy(lowered.canonicalizer).cuda()
    layers = [
        (one.function(), {name: value.cuda() for name, value in one.weights().items()})
        for one in OperatorCanonicalizer(canonicalizer).solves
    ]

    def solve(images: Tensor) -> list[Tensor]:
        prepared = canonicalizer.prepared(images)
        return [run_solve(function, {"image": prepared, **weights}, launch) for function, weights in layers]

    return solve


def solve(lowered: LoweredModel, images: Tensor) -> list[Tensor]:
    return solver(lowered)(images.cuda())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_kernels_solve_what_the_reference_solves(batch: int, precision: str, model: DecModel) -> None:
    images = torch.from_numpy(np.resize(photographs(224, 8), (batch, 3, 224, 224)))
    narrow = copy.deepcopy(model)
    if precision == "fp16":
        for network in narrow.DEM.networks:
            network.half()
    with torch.inference_mode():
        exact = copy.deepcopy(model).double().cuda().DEM(images.double().cuda())
        floors = narrow.cuda().DEM(images.cuda())
        found = solve(lower(model, Format.FP32, Format(precision)), images)
    for phi, truth, floor in zip(found, exact, floors, strict=True):
        for axis in range(2):
            noise = rel_l2(floor[axis].float().cpu().numpy(), truth[axis].cpu().numpy())
            assert rel_l2(phi[:, axis].float().cpu().numpy(), truth[axis].cpu().numpy()) <= MAX_RATIO * noise


def test_a_solve_is_the_same_every_time_and_in_every_batch(model: DecModel) -> None:
    images = torch.from_numpy(photographs(224, 4))
    lowered = lower(model)
    with torch.inference_mode():
        together = solve(lowered, images)
        for again in (solve(lowered, images), solve(lowered, images)):
            assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
        alone = solve(lowered, images[2:3])
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_two_solves_at_once_do_not_wait_for_each_other(model: DecModel) -> None:
    """Two recorded solves run on two streams without the host, as two instances of a server do."""
    images = torch.from_numpy(photographs(224, 8)).cuda()
    solves = [solver(lower(model)) for _ in range(2)]
    graphs, results, streams = [], [], [torch.cuda.Stream() for _ in range(2)]
    with torch.inference_mode():
        expected = solves[0](images)
        for one in solves:
            one(images)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results.append(one(images))
            graphs.append(graph)
        for _ in range(20):
            for graph, stream in zip(graphs, streams, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
    for found in results:
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
