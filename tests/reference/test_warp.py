"""The warp is monotone and invertible, and is smoothed as in the published models."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import GaussianBlur

from dec_export.reference.warp import Phi, coarse_grid, dense_grid, invert_rows, smooth, unwarp, warp, warp_labels

F64 = torch.float64
resolutions = st.integers(4, 12)
sizes = st.tuples(st.integers(5, 40), st.integers(5, 40))
seeds = st.integers(0, 2**32 - 1)


def random_phi(seed: int, resolution: int, batch: int = 2, strength: float = 2.0) -> Phi:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, resolution, resolution - 1)
    return Phi(*(strength * torch.randn(shape, generator=generator, dtype=F64) for _ in range(2)))


def random_image(seed: int, size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(seeds, resolutions, sizes)
@settings(max_examples=50, deadline=None)
def test_grid_increases_strictly_from_zero_to_one(seed: int, resolution: int, size: tuple[int, int]) -> None:
    # Steps far below float64's resolution of 1 could not be seen in a sum.
    phi = random_phi(seed, resolution, strength=1.0)
    for grid in (coarse_grid(phi), dense_grid(phi, size)):
        x, y = grid[:, 0], grid[:, 1].transpose(-1, -2)
        for axis in (x, y):
            assert (axis.diff(dim=-1) > 0).all()
            assert (axis[..., 0] == 0).all()
            torch.testing.assert_close(axis[..., -1], torch.ones_like(axis[..., -1]), rtol=0, atol=1e-14)


@given(st.floats(-5, 5), resolutions, sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_constant_phi_is_the_identity(value: float, resolution: int, size: tuple[int, int], seed: int) -> None:
    constant = torch.full((2, resolution, resolution - 1), value, dtype=F64)
    image = random_image(seed, size)
    for function in (warp, unwarp):
        torch.testing.assert_close(function(Phi(constant, constant), image), image, rtol=0, atol=1e-9)


@given(seeds, resolutions, sizes)
@settings(max_examples=30, deadline=None)
def test_unwarp_inverts_warp_exactly_on_ramps_of_separable_warps(
    seed: int, resolution: int, size: tuple[int, int]
) -> None:
    """Where resampling loses nothing: a linear image, and a warp that is the same for all rows and columns.

    Steps stay wider than the inverse's least interval of 1e-8.
    """
    phi = random_phi(seed, resolution, strength=0.5)
    phi = Phi(*(axis[:, :1].expand_as(axis) for axis in phi))
    ramp_y, ramp_x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=F64) for n in size), indexing="ij")
    image = torch.stack([ramp_x, ramp_y, ramp_x + 2 * ramp_y])[None].expand(2, -1, -1, -1)
    torch.testing.assert_close(unwarp(phi, warp(phi, image)), image, rtol=0, atol=1e-10)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_unwarp_inverts_a_general_warp_to_second_order(seed: int) -> None:
    """Each axis is inverted separately, so halving a warp that couples the axes leaves a quarter of the difference."""
    unit = random_phi(seed, 8, strength=1)
    axis = torch.linspace(0, 3, 160, dtype=F64)
    image = torch.sin(axis[:, None] + 2 * axis)[None, None].expand(2, 1, -1, -1)

    def difference(strength: float) -> float:
        phi = Phi(strength * unit.x, strength * unit.y)
        return (unwarp(phi, warp(phi, image)) - image).norm().item()

    assert difference(0.02) < 0.3 * difference(0.04)
    phi = Phi(0.04 * unit.x, 0.04 * unit.y)
    assert difference(0.04) < 0.5 * (warp(phi, image) - image).norm().item()


@given(seeds, st.integers(2, 30), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_rows_are_inverted_as_numpy_interpolates(seed: int, count: int, rows: int) -> None:
    steps = np.random.default_rng(seed).uniform(0.01, 1, (rows, count - 1))
    knots = np.concatenate([np.zeros((rows, 1)), steps.cumsum(1) / steps.sum(1, keepdims=True)], axis=1)
    uniform = np.linspace(0, 1, count)
    expected = np.stack([np.interp(uniform, row, uniform) for row in knots])
    np.testing.assert_allclose(invert_rows(torch.from_numpy(knots)[None])[0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (10, 9), (7, 12)])
def test_smoothing_is_the_published_gaussian_blur(shape: tuple[int, int]) -> None:
    maps = torch.randn(3, *shape, dtype=F64)
    blur = GaussianBlur(kernel_size=(5, 5), sigma=(0.2, 0.2))
    torch.testing.assert_close(smooth(maps), blur(maps[:, None])[:, 0], rtol=0, atol=1e-14)


def test_the_gradient_of_a_warp_is_its_finite_difference() -> None:
    ramp = torch.linspace(-1, 1, 20, dtype=F64)
    image = (ramp[:, None] * 0.3 + ramp)[None, None]
    phi = [axis.requires_grad_() for axis in random_phi(0, 5, batch=1, strength=0.3)]
    assert torch.autograd.gradcheck(lambda x, y: warp(Phi(x, y), image), phi)


def test_with_a_resolution_features_are_resized_around_the_warp() -> None:
    image = random_image(0, (14, 14))
    ones = Phi.ones(2, 4, image)
    resize = torch.nn.functional.interpolate
    options = {"mode": "bilinear", "align_corners": True, "antialias": True}
    expected = resize(resize(image, size=(10, 9), **options), size=(14, 14), **options)
    torch.testing.assert_close(warp(ones, image, (10, 9)), expected, rtol=0, atol=1e-12)


def test_flatten_and_unflatten_are_inverse() -> None:
    phi = random_phi(0, 6)
    again = Phi.unflatten(phi.flatten(), 6)
    assert torch.equal(again.x, phi.x)
    assert torch.equal(again.y, phi.y)


@given(seeds, resolutions, sizes)
@settings(max_examples=30, deadline=None)
def test_warped_labels_are_those_nearest_to_where_the_warp_reads(
    seed: int, resolution: int, size: tuple[int, int]
) -> None:
    phi = random_phi(seed, resolution, strength=1.0)
    labels = torch.randint(0, 11, (2, *size), generator=torch.Generator().manual_seed(seed))
    warped = warp_labels(phi, labels)
    assert warped.dtype == torch.int64
    ramps = torch.meshgrid(*(torch.arange(n, dtype=F64) for n in size), indexing="ij")
    rows, columns = warp(phi, torch.stack(ramps).expand(2, -1, -1, -1)).unbind(dim=1)
    expected = labels[torch.arange(2)[:, None, None], rows.round().long(), columns.round().long()]
    # Halfway between two pixels either is nearest, and rounding decides.
    tied = ((rows.frac() - 0.5).abs() < 1e-9) | ((columns.frac() - 0.5).abs() < 1e-9)
    assert ((warped == expected) | tied).all()


def test_labels_stay_as_they_are_under_the_identity() -> None:
    labels = torch.randint(0, 256, (2, 9, 13), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(warp_labels(Phi.ones(2, 6, torch.ones((), dtype=F64)), labels), labels)


@pytest.mark.parametrize("size", [7, 8])
def test_the_published_nearest_mode_reads_a_stretched_image(size: int) -> None:
    """The identity reads pixel round(n i / (n - 1) - 1/2), a half to even, and zero past the last pixel."""
    image = torch.arange(1.0, size + 1, dtype=torch.float64).expand(1, 1, size, size)
    ones = Phi.ones(1, 5, image)
    row = warp(ones, image, None, "nearest")[0, 0, 2]
    places = [round(Fraction(size * i, size - 1) - Fraction(1, 2)) for i in range(size)]
    assert row.tolist() == [place + 1 if place < size else 0 for place in places]
    column = warp(ones, image.transpose(-1, -2), None, "nearest")[0, 0, :, 2]
    assert column.tolist() == row.tolist()
