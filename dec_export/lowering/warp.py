"""The warp with its coarse-grid arithmetic as matrix products, arranged for accuracy.

Smoothing, accumulation and bilinear upsampling are linear and separable, so a dense coordinate map is
`U softmax(3 K phi) T`: K smooths, T accumulates and upsamples along the steps, U upsamples across them.

An error of a coordinate is multiplied by the image's size when pixels are read, and by the solver's amplification
after that; it is the largest source of a float32 model's distance from float64. Hence K phi is computed as
phi + (K - I) phi, whose second term is tiny, and T is written for coordinates in [-1, 1], where partial sums are
smaller and no later scaling rounds again (steps sum to one, so 2 T - 1 takes the place of T).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dec_export.lowering.matrices import accumulation_matrix, resize_matrix, smoothing_matrix
from dec_export.lowering.search import invert_rows
from dec_export.reference.warp import SOFTMAX_SHARPNESS, Phi


class LoweredGrid(nn.Module):
    """`reference.warp.dense_grid` for one coarse resolution and one size, as coordinates in [-1, 1].

    Phi -> x and y maps, each (B, H, W).
    """

    smoothing_less_identity: Tensor
    accumulate_x: Tensor
    accumulate_y: Tensor
    spread_x: Tensor
    spread_y: Tensor

    def __init__(self, coarse_resolution: int, size: tuple[int, int]) -> None:
        super().__init__()
        rows, steps = coarse_resolution, coarse_resolution - 1
        smoothing = torch.kron(smoothing_matrix(rows), smoothing_matrix(steps)).T
        self.register_buffer("smoothing_less_identity", smoothing - torch.eye(rows * steps, dtype=torch.float64))
        height, width = (resize_matrix(rows, n, align_corners=True, antialias=False) for n in size)
        for axis, along, across in (("x", width, height), ("y", height, width)):
            self.register_buffer(f"accumulate_{axis}", (2 * along @ accumulation_matrix(steps) - 1).T.contiguous())
            self.register_buffer(f"spread_{axis}", across)

    def _steps(self, phi_axis: Tensor) -> Tensor:
        change = (phi_axis.flatten(1) @ self.smoothing_less_identity).view_as(phi_axis)
        return torch.softmax(SOFTMAX_SHARPNESS * (phi_axis + change), dim=-1)

    def forward(self, phi: Phi) -> tuple[Tensor, Tensor]:
        x = self.spread_x @ (self._steps(phi.x) @ self.accumulate_x)
        y = self.spread_y @ (self._steps(phi.y) @ self.accumulate_y)
        return x, y.transpose(-1, -2)


def sample(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`reference.warp.sample` on separate coordinate maps (B, H', W') in [-1, 1]."""
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


class LoweredWarp(nn.Module):
    """`reference.warp.warp`, or with `inverse` its `unwarp`, for maps of one size."""

    def __init__(
        self,
        coarse_resolution: int,
        size: tuple[int, int],
        resolution: tuple[int, int] | None = None,
        *,
        inverse: bool = False,
    ) -> None:
        super().__init__()
        self.inverse = inverse
        self.grid = LoweredGrid(coarse_resolution, resolution or size)
        self.resize_there = FixedResize(size, resolution) if resolution else nn.Identity()
        self.resize_back = FixedResize(resolution, size) if resolution else nn.Identity()

    def forward(self, phi: Phi, image: Tensor) -> Tensor:
        x, y = self.grid(phi)
        if self.inverse:
            x, y = invert_rows(x), invert_rows(y.transpose(-1, -2)).transpose(-1, -2)
        warped: Tensor = self.resize_back(sample(self.resize_there(image), x, y))
        return warped


class FixedResize(nn.Module):
    """An antialiased bilinear resize between fixed sizes: two matrix products on (B, C, H, W)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], new_size: tuple[int, int], *, align_corners: bool = True) -> None:
        super().__init__()
        rows, columns = (
            resize_matrix(old, new, align_corners=align_corners, antialias=True)
            for old, new in zip(size, new_size, strict=True)
        )
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, image: Tensor) -> Tensor:
        return self.rows @ image @ self.columns
