"""The plugin's kernels on a real GPU, launched as an engine launches them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from dec_export.lowering.model import LoweredModel, lower
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.parity.gate import MAX_RATIO
from dec_export.parity.metrics import rel_l2
from dec_export.recipe import Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_plugins.chain import run_solve
from tests.conftest import photographs, randomised

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def model() -> DecModel:
    return randomised(create_reference(Recipe.named("deit_s"))).eval()


def solve(lowered: LoweredModel, images: Tensor) -> list[Tensor]:
    from dec_plugins.cuda import CudaLauncher

    launch, canonicalizer = CudaLauncher(), lowered.canonicalizer.cuda()
    prepared = canonicalizer.prepared(images.cuda())
    phis = []
    for one in OperatorCanonicalizer(canonicalizer).solves:
        weights = {name: value.cuda() for name, value in one.weights().items()}
        phis.append(run_solve(one.function(), {"image": prepared, **weights}, launch))
    return phis


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
        found = solve(lower(model, "fp32", precision), images)
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


def test_two_streams_solve_at_once_without_waiting_for_each_other(model: DecModel) -> None:
    images = torch.from_numpy(photographs(224, 8))
    lowered = lower(model)
    with torch.inference_mode():
        expected = solve(lowered, images)
        streams = [torch.cuda.Stream() for _ in range(2)]
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(solve(lowered, images))
        torch.cuda.synchronize()
    for found in results:
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
