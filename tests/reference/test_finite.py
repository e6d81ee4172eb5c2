"""A number that is not finite never gives a finite output, and never changes other images of the batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dec_export.recipe.model import Recipe
from dec_export.reference.finite import finite_samples, nan_unless
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.trace import trace
from dec_export.reference.warp import Phi
from tests.conftest import photographs

NOT_FINITE = st.sampled_from([float("nan"), float("inf"), float("-inf")])


@pytest.fixture(scope="module")
def model(small_recipe: Recipe) -> DecModel:
    return create_reference(small_recipe)


def poisoned(images: Tensor, sample: int, pixel: tuple[int, int, int], value: float) -> Tensor:
    changed = images.clone()
    changed[(sample, *pixel)] = value
    return changed


@settings(max_examples=12, deadline=None)
@given(pixel=st.tuples(st.integers(0, 2), st.integers(0, 159), st.integers(0, 159)), value=NOT_FINITE)
def test_any_pixel_that_is_not_finite_makes_the_outputs_of_its_image_nan(
    pixel: tuple[int, int, int], value: float, model: DecModel
) -> None:
    images = torch.from_numpy(photographs(160, 2))
    with torch.inference_mode():
        expected = model(images[1:])
        for output in (
            model(poisoned(images, 0, pixel, value)),
            trace(model, poisoned(images, 0, pixel, value)).output,
        ):
            values = [output.logits, *(axis for phi in output.phis for axis in phi)]
            wanted = [expected.logits, *(axis for phi in expected.phis for axis in phi)]
            for found, one in zip(values, wanted, strict=True):
                assert found[0].isnan().all()
                torch.testing.assert_close(found[1:], one, rtol=1e-3, atol=1e-5)  # another batch rounds otherwise


def test_a_phi_that_is_not_finite_makes_the_outputs_nan(model: DecModel) -> None:
    """The outputs are NaN also for a finite image whose solve overflows, as with weights in 16 bits."""
    images = torch.from_numpy(photographs(160, 2))
    with torch.inference_mode():
        phis = [Phi(*(axis.clone() for axis in phi)) for phi in model.DEM(images)]
        phis[1].y[0, 2, 1] = torch.inf
        output = model.answer(images, phis)
    assert output.logits[0].isnan().all()
    assert output.logits[1].isfinite().all()
    assert output.phis[0].x[0].isnan().all()
    assert torch.equal(output.phis[0].x[1], phis[0].x[1])


@given(
    data=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=12, max_size=12),
    exponent=st.integers(-126, 100),
)
def test_finite_samples_are_those_without_nan_or_infinity(data: list[float], exponent: int) -> None:
    images = torch.tensor(data, dtype=torch.float32).clamp(-(2.0**120), 2.0**120).view(2, 3, 1, 2)
    infinite = torch.tensor(data).isinf().view(2, 3, 1, 2)
    images = torch.where(infinite, torch.tensor(data).view(2, 3, 1, 2), images) * 2.0 ** min(exponent, 0)
    assert finite_samples(images, []).tolist() == images.isfinite().flatten(1).all(1).tolist()


def test_finite_samples_keep_every_bit() -> None:
    values = torch.tensor([[0.0, -0.0, 1e-45, -3.4e38]])
    kept = nan_unless(torch.tensor([True]), values)
    assert kept.view(torch.int32).tolist() == values.view(torch.int32).tolist()


def test_float64_is_judged_by_its_own_range(model: DecModel) -> None:
    image = torch.full((1, 3, 4, 4), 1e200, dtype=torch.float64)
    assert finite_samples(image, []).all()
    assert not finite_samples(image * np.float64(1e200), []).any()


def test_the_guard_changes_no_number_of_a_finite_image(model: DecModel) -> None:
    images = torch.from_numpy(photographs(160, 2))
    plain = copy.deepcopy(model)
    with torch.inference_mode():
        phis = plain.DEM(images)
        own = model(images).phis
    pairs = [(a, b) for phi, mine in zip(phis, own, strict=True) for a, b in zip(phi, mine, strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
