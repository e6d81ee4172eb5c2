"""The monotone warp and its inverse.

Source: Rahman et al., "Local Scale Equivariance with Latent Deep Equilibrium Canonicalizer", ICCV 2025
(arXiv 2508.14187), section 4, and the behaviour of its published implementation; docs/semantics.md, sections 1 and 2.

A map of raw steps is smoothed, turned into positive steps that sum to one, and accumulated: the result is
a grid whose coordinates increase strictly along each axis, hence an invertible local change of scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

SMOOTHING_SIZE = 5
# The published code draws sigma from the float32 interval [0.2, 0.2]; its value is float32's nearest to 0.2.
SMOOTHING_SIGMA = torch.tensor(0.2, dtype=torch.float32).item()
SOFTMAX_SHARPNESS = 3.0
MIN_INTERVAL = 1e-8
# How a warp reads an image between its pixels.
Mode = Literal["bilinear", "nearest"]


class Phi(NamedTuple):
    """Raw steps of one warp, dimensionless; R is the coarse resolution.

    `x[b, r]` holds the steps along x of coarse row r; `y[b, c]` the steps along y of coarse column c.
    """

    x: Float[Tensor, "batch R R-1"]
    y: Float[Tensor, "batch R R-1"]

    def flatten(self) -> Float[Tensor, "batch n"]:
        """Return both maps as one vector of n = 2 R (R-1) numbers for each sample, x first."""
        return torch.cat([self.x.flatten(1), self.y.flatten(1)], dim=1)

    @staticmethod
    def unflatten(z: Float[Tensor, "batch n"], resolution: int) -> Phi:
        """Invert `flatten` for maps of this coarse resolution R, where n = 2 R (R-1)."""
        x, y = z.chunk(2, dim=1)
        shape = (-1, resolution, resolution - 1)
        return Phi(x.reshape(shape), y.reshape(shape))

    @staticmethod
    def ones(batch: int, resolution: int, like: Tensor) -> Phi:
        """Return the steps of the identity warp, with the dtype and device of `like`."""
        ones = torch.ones(batch, resolution, resolution - 1, dtype=like.dtype, device=like.device)
        return Phi(ones, ones.clone())


def smoothing_kernel(dtype: torch.dtype, device: torch.device | None = None) -> Float[Tensor, " 5"]:
    """Return the normalised one-dimensional Gaussian of the smoothing."""
    half = (SMOOTHING_SIZE - 1) / 2
    offsets = torch.linspace(-half, half, SMOOTHING_SIZE, dtype=dtype, device=device)
    return torch.softmax(-0.5 * (offsets / SMOOTHING_SIGMA) ** 2, dim=0)


def smooth(maps: Float[Tensor, "batch h w"]) -> Float[Tensor, "batch h w"]:
    """Blur maps with the 5x5 Gaussian under reflect padding; h and w must be at least 3."""
    kernel = smoothing_kernel(maps.dtype, maps.device)
    padded = F.pad(maps.unsqueeze(1), [SMOOTHING_SIZE // 2] * 4, mode="reflect")
    return F.conv2d(padded, torch.outer(kernel, kernel)[None, None]).squeeze(1)


def positive_steps(phi_axis: Float[Tensor, "batch R R-1"]) -> Float[Tensor, "batch R R-1"]:
    """Return one map of phi as positive steps that sum to one along the last axis (section 1, steps 1 and 2)."""
    return torch.softmax(SOFTMAX_SHARPNESS * smooth(phi_axis), dim=-1)


def coarse_grid(phi: Phi) -> Float[Tensor, "batch 2 R R"]:
    """Return accumulated steps as a grid in [0, 1]: channel 0 is x, channel 1 is y (section 1, steps 3 and 4)."""
    x = _accumulated(positive_steps(phi.x))
    y = _accumulated(positive_steps(phi.y)).transpose(-1, -2)
    return torch.stack([x, y], dim=1)


def _accumulated(steps: Float[Tensor, "batch R R-1"]) -> Float[Tensor, "batch R R"]:
    return F.pad(steps, [1, 0]).cumsum(dim=-1)


def dense_grid(phi: Phi, size: tuple[int, int]) -> Float[Tensor, "batch 2 {size[0]} {size[1]}"]:
    """Return the coarse grid in [0, 1], upsampled bilinearly (corners aligned) to `size` (section 1, step 5)."""
    return F.interpolate(coarse_grid(phi), size=size, mode="bilinear", align_corners=True)


def sample(
    image: Float[Tensor, "batch channels _ _"],
    grid: Float[Tensor, "batch 2 height width"],
    mode: Mode = "bilinear",
) -> Float[Tensor, "batch channels height width"]:
    """Read images at a grid of coordinates in [0, 1], corners aligned (section 1, step 6).

    Border padding only absorbs the last rounding of coordinates that are 1 in exact arithmetic.
    """
    return F.grid_sample(
        image, (grid * 2 - 1).permute(0, 2, 3, 1), mode=mode, padding_mode="border", align_corners=True
    )


def sample_nearest(
    image: Float[Tensor, "batch channels _ _"], grid: Float[Tensor, "batch 2 height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Read the nearest pixels as the published interpolation mode "nearest" does.

    The published code leaves PyTorch's other defaults in this mode: corners are not aligned, so that an image of n
    pixels is read as if stretched by n / (n - 1), and places outside are zero. The last row and column of every warp
    have the coordinate 1, which lies half way between the last pixel and zero, so that rounding decides in the
    published code. Here the exact coordinate decides, which rounds to even: zero for even n, the last pixel for odd n.
    """
    pinned = pin_borders(grid * 2 - 1, (image.shape[-1], image.shape[-2]))
    return F.grid_sample(image, pinned.permute(0, 2, 3, 1), mode="nearest", padding_mode="zeros", align_corners=False)


def pin_borders(
    grid: Float[Tensor, "batch 2 height width"], sizes: tuple[int, int]
) -> Float[Tensor, "batch 2 height width"]:
    """Return a grid in [-1, 1] whose first and last columns of x, and rows of y, are moved off the ties of rounding.

    sizes: the width and the height of the image that is read. The moved coordinates have the pixels of the exact ones.
    """
    width, height = sizes
    x, y = grid.unbind(dim=1)
    return torch.stack([_pinned(x, width), _pinned(y.transpose(-1, -2), height).transpose(-1, -2)], dim=1)


def _pinned(lines: Float[Tensor, "batch rows M"], size: int) -> Float[Tensor, "batch rows M"]:
    """Return coordinates whose first and last values along the last axis are those of `border_coordinates`."""
    first, last = (torch.full_like(lines[..., :1], value) for value in border_coordinates(size))
    return torch.cat([first, lines[..., 1:-1], last], dim=-1)


def border_coordinates(size: int) -> tuple[float, float]:
    """Return coordinates in [-1, 1] that read the pixels which -1 and 1 read in an axis of `size` pixels.

    -1 is the tie between zero and the first pixel, whose number is even; 1 is the tie between the last pixel and zero.
    """
    return -1 + 0.5 / size, (1 + 0.5 / size) if size % 2 == 0 else (1 - 0.5 / size)


def invert_rows(knots: Float[Tensor, "batch rows M"]) -> Float[Tensor, "batch rows M"]:
    """Invert monotone piecewise linear maps, row by row (section 2).

    Row n maps the M uniform positions of [0, 1] to `knots[b, n]`. For each of the M uniform values, the result holds
    the position that the row maps to that value.
    """
    count = knots.shape[-1]
    uniform = torch.linspace(0, 1, count, dtype=knots.dtype, device=knots.device)
    right = torch.searchsorted(knots.contiguous(), uniform.expand_as(knots).contiguous()).clamp(max=count - 1)
    left = (right - 1).clamp(min=0)
    knot_left, knot_right = knots.gather(-1, left), knots.gather(-1, right)
    weight = (uniform - knot_left) / (knot_right - knot_left).clamp(min=MIN_INTERVAL)
    return (1 - weight) * uniform[left] + weight * uniform[right]


def inverse_grid(phi: Phi, size: tuple[int, int]) -> Float[Tensor, "batch 2 {size[0]} {size[1]}"]:
    """Return the grid in [0, 1] that inverts `dense_grid` along each axis separately (section 2)."""
    grid_x, grid_y = dense_grid(phi, size).unbind(dim=1)
    x = invert_rows(grid_x)
    y = invert_rows(grid_y.transpose(-1, -2)).transpose(-1, -2)
    return torch.stack([x, y], dim=1)


def resize(
    image: Float[Tensor, "batch channels _ _"], size: tuple[int, int]
) -> Float[Tensor, "batch channels {size[0]} {size[1]}"]:
    """Resize features bilinearly, with aligned corners and antialiasing."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=True, antialias=True)


def warp(
    phi: Phi,
    image: Float[Tensor, "batch channels height width"],
    resolution: tuple[int, int] | None = None,
    mode: Mode = "bilinear",
) -> Float[Tensor, "batch channels height width"]:
    """Warp images or features by `phi`; a constant `phi` is the identity if `mode` is "bilinear" (section 1).

    With `resolution`, the image is resized to it before sampling and back afterwards.
    """
    return _sample_at(image, resolution, mode, lambda size: dense_grid(phi, size))


def warp_labels(phi: Phi, labels: Integer[Tensor, "batch height width"]) -> Integer[Tensor, "batch height width"]:
    """Warp labels by `phi`: each pixel takes the label nearest to where `warp` would read."""
    grid = dense_grid(phi, (labels.shape[-2], labels.shape[-1]))
    return sample(labels[:, None].to(grid.dtype), grid, "nearest").squeeze(1).to(labels.dtype)


def unwarp(
    phi: Phi,
    image: Float[Tensor, "batch channels height width"],
    resolution: tuple[int, int] | None = None,
    mode: Mode = "bilinear",
) -> Float[Tensor, "batch channels height width"]:
    """Invert `warp`: `unwarp(phi, warp(phi, x))` is `x` up to the blur of resampling (section 2)."""
    return _sample_at(image, resolution, mode, lambda size: inverse_grid(phi, size))


def _sample_at(
    image: Tensor, resolution: tuple[int, int] | None, mode: Mode, grid_of: Callable[[tuple[int, int]], Tensor]
) -> Tensor:
    size = (image.shape[-2], image.shape[-1])
    read = sample if mode == "bilinear" else sample_nearest
    if resolution is None:
        return read(image, grid_of(size))
    return resize(read(resize(image, resolution), grid_of(resolution)), size)
