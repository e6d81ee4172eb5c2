"""The whole chain of interpreted kernels computes the reference's solve."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import onnx
import pytest
import torch
from torch import Tensor

from dec_export.errors import ExportError
from dec_export.formats import Format
from dec_export.lowering.model import LoweredModel, lower
from dec_export.onnx_export.operators import Operator
from dec_export.onnx_export.solver import OperatorCanonicalizer
from dec_export.parity.metrics import rel_l2
from dec_export.recipe.model import CanonicalizerRecipe, Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_plugins.chain import run_solve
from tests.conftest import photographs, randomised
from tests.plugins.interpreter import interpret


@pytest.fixture
def model(small_recipe: Recipe) -> DecModel:
    """Return a model with odd sizes and partial bands and windows, which is small because an interpreter runs it."""
    canonicalizer = CanonicalizerRecipe(
        coarse_resolution=(6, 4), channels=(3, 8, 12), kernel_sizes=(5, 3), pool_rates=(4, 2), image_size=29, max_iter=4
    )
    recipe = small_recipe.model_copy(update={"canonicalizer": canonicalizer})
    return randomised(create_reference(recipe))


def solves(model: LoweredModel) -> list[tuple[onnx.FunctionProto, dict[str, Tensor]]]:
    """Return each layer's function and its weights."""
    return [(solve.function(), solve.weights()) for solve in OperatorCanonicalizer(model.canonicalizer).solves]


def phis_of(model: LoweredModel, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        prepared = model.canonicalizer.prepared(images)
        return [run_solve(function, {"image": prepared, **weights}, interpret) for function, weights in solves(model)]


def test_the_chain_gives_the_reference_s_phi(model: DecModel) -> None:
    images = torch.from_numpy(photographs(160, 3))
    truth = copy.deepcopy(model).double().eval().DEM
    with torch.inference_mode():
        exact, floors = truth(images.double()), model.eval().DEM(images)
    for found, phi, floor in zip(phis_of(lower(model), images), exact, floors, strict=True):
        for axis in range(2):
            noise = rel_l2(floor[axis].numpy(), phi[axis].numpy())
            assert rel_l2(found[:, axis].numpy(), phi[axis].numpy()) <= 2 * noise


def test_in_float16_the_chain_is_as_near_as_the_float16_reference(model: DecModel) -> None:
    images = torch.from_numpy(photographs(160, 2))
    truth, reference = copy.deepcopy(model).double().eval(), copy.deepcopy(model).eval()
    for network in reference.DEM.networks:
        network.half()
    with torch.inference_mode():
        exact, floors = truth.DEM(images.double()), reference.DEM(images)
    for found, phi, floor in zip(phis_of(lower(model, Format.FP32, Format.FP16), images), exact, floors, strict=True):
        for axis in range(2):
            noise = rel_l2(floor[axis].float().numpy(), phi[axis].numpy())
            assert rel_l2(found[:, axis].numpy(), phi[axis].numpy()) <= 2 * noise


def test_a_sample_s_phi_does_not_depend_on_its_batch(model: DecModel) -> None:
    images = torch.from_numpy(photographs(160, 2))
    lowered = lower(model)
    together = phis_of(lowered, images)
    alone = phis_of(lowered, images[1:2])
    again = phis_of(lowered, images)
    for all_, one, repeated in zip(together, alone, again, strict=True):
        assert torch.equal(all_[1:2], one)
        assert torch.equal(all_, repeated)


def test_a_wrong_tensor_is_named(model: DecModel) -> None:
    def launch(operator: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
        raise AssertionError(operator.name)

    lowered = lower(model)
    (function, weights), *_ = solves(lowered)
    image = lowered.canonicalizer.prepared(torch.zeros(1, 3, 160, 160))
    expected = (
        r"Node 'solve_0/f_0/convolve_0' \(Convolve29x29Pool4V1\): 'padded' must be float32 \(batch, 3, 33, 33\), found"
    )
    with pytest.raises(ExportError, match=expected):
        run_solve(function, {"image": image[..., 1:], **weights}, launch)
    with pytest.raises(ExportError, match=r"'solve_0/f_0/convolve_0' .* 'weight' must be float32"):
        run_solve(function, {"image": image, **weights, "weight_0": weights["weight_0"].half()}, launch)
