"""The warp, with its arithmetic on the coarse grid as matrix products in an accurate and fast order.

Smoothing, accumulation and bilinear upsampling are linear and separable, so a dense coordinate map is
`U softmax(3 K phi) T`: K smooths, T accumulates and upsamples along the steps, U upsamples across them.

An error of a coordinate is multiplied by the image's size when pixels are read, and then by the solver's amplification;
it is the largest source of a float32 model's distance from float64. Hence K phi is computed as phi + (K - I) phi, whose
second term is tiny, and T gives the coordinates of GridSample directly. These are centred at zero, so partial sums are
smaller, and no later scaling rounds again. (The steps sum to one, so a constant that is added to all entries of T is
added to every coordinate.)

Three rewritings make sampling cheap, and none of them changes a value:
- GridSample without corner alignment and without padding has a fast kernel in ONNX Runtime; a coordinate that is c
  with aligned corners is c (n - 1) / n without, and border padding is a clamp;
- the matrix products write both coordinates side by side, as GridSample reads them, so nothing is transposed;
- a reflect padding that follows is a constant choice of rows and columns of U and T: the grid is sampled at the
  padded size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.lowering.matrices import accumulation_matrix, reflect_matrix, resize_matrix, smoothing_matrix
from dec_export.lowering.search import invert_rows
from dec_export.reference.warp import SOFTMAX_SHARPNESS, Mode, Phi, border_coordinates


class PositiveSteps(nn.Module):
    """A module that computes `reference.warp.positive_steps` for one coarse resolution R."""

    smoothing_less_identity: Tensor

    def __init__(self, coarse_resolution: int) -> None:
        super().__init__()
        rows, steps = coarse_resolution, coarse_resolution - 1
        smoothing = torch.kron(smoothing_matrix(rows), smoothing_matrix(steps)).T
        self.register_buffer("smoothing_less_identity", smoothing - torch.eye(rows * steps, dtype=torch.float64))

    def forward(self, phi_axis: Float[Tensor, "batch R R-1"]) -> Float[Tensor, "batch R R-1"]:
        change = (phi_axis.flatten(1) @ self.smoothing_less_identity).view_as(phi_axis)
        return torch.softmax(SOFTMAX_SHARPNESS * (phi_axis + change), dim=-1)


class LoweredGrid(nn.Module):
    """A module that computes `reference.warp.dense_grid` for one coarse resolution and size, as GridSample reads it.

    The grid is reflected at its border by `padding` p, so that its height and width exceed those of `size` by 2 p. On
    the last axis, x comes before y. With `mode` "nearest" the coordinates stay those of aligned corners, because the
    published mode reads them without aligning corners.
    """

    accumulate_x: Tensor
    accumulate_y: Tensor
    spread_x: Tensor
    spread_y: Tensor

    def __init__(
        self, coarse_resolution: int, size: tuple[int, int], padding: int = 0, mode: Mode = "bilinear"
    ) -> None:
        super().__init__()
        self.steps = PositiveSteps(coarse_resolution)
        self.size = (size[0] + 2 * padding, size[1] + 2 * padding)
        rows, columns = (
            reflect_matrix(n, padding) @ resize_matrix(coarse_resolution, n, align_corners=True, antialias=False)
            for n in size
        )
        accumulate = accumulation_matrix(coarse_resolution - 1)
        limit_y, limit_x = ((n - 1) / n if mode == "bilinear" else 1.0 for n in size)
        self.limits = (limit_x, limit_y)
        # The even columns of the product are x, and the odd columns are y.
        self.register_buffer("spread_x", rows)
        self.register_buffer("accumulate_x", _at_every_second((2 * columns @ accumulate - 1).T * limit_x, offset=0))
        self.register_buffer("accumulate_y", (2 * rows @ accumulate - 1) * limit_y)
        self.register_buffer("spread_y", _at_every_second(columns.T, offset=1))

    def forward(self, phi: Phi) -> Float[Tensor, "batch height width 2"]:
        x = self.spread_x @ (self.steps(phi.x) @ self.accumulate_x)
        y = (self.accumulate_y @ self.steps(phi.y).transpose(1, 2)) @ self.spread_y
        limit_x, limit_y = self.limits
        grid: Tensor = x.clamp(-limit_x, limit_x) + y.clamp(-limit_y, limit_y)
        return grid.view(-1, self.size[0], self.size[1], 2)


def _at_every_second(matrix: Tensor, offset: int) -> Tensor:
    """Return a matrix (m, 2 n) whose every second column is one of the columns of (m, n); the others are zero."""
    spread = matrix.new_zeros(matrix.shape[0], matrix.shape[1], 2)
    spread[:, :, offset] = matrix
    return spread.flatten(1)


def sample(
    image: Float[Tensor, "batch channels _ _"], grid: Float[Tensor, "batch height width 2"], mode: Mode = "bilinear"
) -> Float[Tensor, "batch channels height width"]:
    """Compute `reference.warp.sample`, or `sample_nearest`, on a grid that `LoweredGrid` computed for the same mode."""
    return F.grid_sample(image, grid, mode=mode, padding_mode="zeros", align_corners=False)


class LoweredWarp(nn.Module):
    """A module that computes `reference.warp.warp`, or `unwarp` if `inverse` is set, for maps of one size.

    padding: the number of pixels by which the warped map is reflected at its borders.
    mode: how the map is read between its pixels; "nearest" has the borders of `reference.warp.sample_nearest`.
    """

    inner: Tensor
    border: Tensor

    def __init__(
        self,
        coarse_resolution: int,
        size: tuple[int, int],
        resolution: tuple[int, int] | None = None,
        *,
        inverse: bool = False,
        padding: int = 0,
        mode: Mode = "bilinear",
    ) -> None:
        super().__init__()
        self.inverse, self.mode = inverse, mode
        self.grid = LoweredGrid(coarse_resolution, resolution or size, padding, mode)
        if mode == "nearest":
            inner, border = _pins(resolution or size)
            self.register_buffer("inner", inner)
            self.register_buffer("border", border)
        self.resize_there = FixedResize(size, resolution) if resolution else nn.Identity()
        self.resize_back = FixedResize(resolution, size) if resolution else nn.Identity()

    def forward(self, phi: Phi, image: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch channels _ _"]:
        grid: Tensor = self.grid(phi)
        if self.inverse:
            grid = _inverted(grid, self.grid.limits)
        if self.mode == "nearest":
            grid = grid * self.inner + self.border
        warped: Tensor = self.resize_back(sample(self.resize_there(image), grid, self.mode))
        return warped


def _pins(size: tuple[int, int]) -> tuple[Float[Tensor, "1 height width 2"], Float[Tensor, "1 height width 2"]]:
    """Return a factor that is 0 at the coordinates that `reference.warp.pin_borders` moves, and what is added there."""
    height, width = size
    inner = torch.ones(1, height, width, 2, dtype=torch.float64)
    border = torch.zeros_like(inner)
    inner[:, :, [0, -1], 0] = 0
    inner[:, [0, -1], :, 1] = 0
    for end, coordinate in zip((0, -1), border_coordinates(width), strict=True):
        border[:, :, end, 0] = coordinate
    for end, coordinate in zip((0, -1), border_coordinates(height), strict=True):
        border[:, end, :, 1] = coordinate
    return inner, border


def _inverted(
    grid: Float[Tensor, "batch height width 2"], limits: tuple[float, float]
) -> Float[Tensor, "batch height width 2"]:
    """Return the grid that inverts `grid` along each axis separately."""
    x, y = (axis / limit for axis, limit in zip(grid.unbind(dim=-1), limits, strict=True))
    x, y = invert_rows(x), invert_rows(y.transpose(-1, -2)).transpose(-1, -2)
    return torch.stack([x * limits[0], y * limits[1]], dim=-1)


class FixedResize(nn.Module):
    """A module that computes a bilinear resize between fixed sizes by two matrix products."""

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        new_size: tuple[int, int],
        *,
        align_corners: bool = True,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        rows, columns = (
            resize_matrix(old, new, align_corners=align_corners, antialias=antialias)
            for old, new in zip(size, new_size, strict=True)
        )
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, image: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch channels _ _"]:
        return self.rows @ image @ self.columns
