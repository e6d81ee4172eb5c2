"""A canonicalizer's residual block, rewritten so that most of its work is done on the pooled map.

The block computes conv + projection -> InstanceNorm -> Softplus -> MaxPool. The rewritings are exact:
- the 1x1 projection (or the identity) adds to the centre tap of the convolution;
- with the sign of a negative InstanceNorm scale moved into its convolution channel, norm and Softplus are
  increasing, so MaxPool commutes with both and they run on the pooled map;
- the mean of a convolution's output is the weighted sum of one mean for each tap, over the window of the input that the
  tap reads. Two small matrix products compute these means, so the large output map is not read for them;
- InstanceNorm cancels every constant over a map, so biases are left out, and a constant may be subtracted from the
  output of a block: it stays a constant under reflect padding, and the next norm cancels it. A constant near the mean
  avoids cancellation in the next block's E[y^2] - E[y]^2, and keeps its sums small;
- Softplus is written as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow; softplus minus c is
  max(x, 0) + log(exp(-c) + exp(-|x| - c)), which costs no more.

With 16-bit weights the convolution, which is most of the block's cost, runs in 16 bits; statistics and norm stay in
float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.lowering.matrices import box_matrix
from dec_export.reference.canonicalizer import ResidualBlock

_LARGEST_OFFSET = 40.0


def softplus(x: Float[Tensor, " *size"], subtracted: float = 0.0) -> Float[Tensor, " *size"]:
    """Return log(1 + exp(x)) - subtracted for every element, without overflow."""
    return x.clamp(min=0) + torch.log(math.exp(-subtracted) + torch.exp(-subtracted - x.abs()))


def spatial_mean(maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels 1 1"]:
    """Return the mean over the last two axes, summed in two levels.

    A runtime may add up a whole map in one float32 register, whose error grows with the square root of h w. With sums
    over windows first, the error grows with the fourth root.
    """
    height, width = int(maps.shape[-2]), int(maps.shape[-1])
    window = (_divisor_near_root(height), _divisor_near_root(width))
    if window != (1, 1):
        maps = F.avg_pool2d(maps, window)
    # A pooling, unlike a reduction, works in the blocked layout of a convolution's output.
    return F.avg_pool2d(maps, (int(maps.shape[-2]), int(maps.shape[-1])))


def _divisor_near_root(size: int) -> int:
    return max(divisor for divisor in range(1, int(size**0.5) + 1) if size % divisor == 0)


def centred(maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
    """Return the maps minus their spatial means."""
    return maps - spatial_mean(maps)


def expected_activation(block: ResidualBlock) -> float:
    """Return an estimate of a block's output: the softplus of the norm's output, one standard deviation above its mean.

    An estimate is enough, because any constant is exact. The exponential of its negative must be a normal float32.
    """
    affine = block.norm1.weight.detach().double().abs() + block.norm1.bias.detach().double()
    return min(float(F.softplus(affine).mean()), _LARGEST_OFFSET)


class LoweredBlock(nn.Module):
    """A rewritten `ResidualBlock`, whose output is that of the block minus `offset`; `pad` must have padded its input.

    size: (h, w) of the input before padding. A constant may have been subtracted from the input, whose means should be
    near zero.
    """

    weight: Tensor
    tap_weight: Tensor
    boxes_y: Tensor
    boxes_x: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, block: ResidualBlock, size: tuple[int, int]) -> None:
        super().__init__()
        scale, shift = block.norm1.weight.detach().double(), block.norm1.bias.detach().double()
        sign = torch.where(scale < 0, -1.0, 1.0).double()
        weight = _fold_projection(block) * sign[:, None, None, None]
        kernel = weight.shape[-1]
        self.eps = block.norm1.eps
        self.pool = block.pool
        self.pool_rate = 1 if isinstance(block.pool, nn.Identity) else int(block.pool.kernel_size)  # type: ignore[arg-type]
        self.padding = kernel // 2
        self.offset = expected_activation(block)
        self.register_buffer("weight", weight)
        self.register_buffer("tap_weight", weight.flatten(1).T.contiguous())
        self.register_buffer("boxes_y", box_matrix(size[0] + 2 * self.padding, kernel))
        self.register_buffer("boxes_x", box_matrix(size[1] + 2 * self.padding, kernel).T.contiguous())
        self.register_buffer("scale", scale.abs()[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def pad(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels _ _"]:
        """Pad a map for `forward`, by reflection at its borders."""
        return F.pad(x, [self.padding] * 4, mode="reflect") if self.padding else x

    def cast_convolution(self, dtype: torch.dtype) -> None:
        """Let the convolution compute in another dtype, in place; the mean is then that of its rounded weights."""
        self.weight = self.weight.to(dtype)
        self.tap_weight = self.weight.flatten(1).T.to(self.tap_weight.dtype).contiguous()

    def forward(self, padded: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        map_ = F.conv2d(padded.to(self.weight.dtype), self.weight)
        y = map_.to(padded.dtype)
        taps = self.boxes_y @ padded @ self.boxes_x
        mean = (taps.flatten(1) @ self.tap_weight)[:, :, None, None]
        variance = (spatial_mean(y * y) - mean * mean).clamp(min=0)
        factor = self.scale / torch.sqrt(variance + self.eps)
        normed = self.pool(map_).to(padded.dtype) * factor + (self.shift - mean * factor)
        return softplus(normed, subtracted=self.offset)


def _fold_projection(block: ResidualBlock) -> Tensor:
    """Return the float64 kernel of conv1, with the projection or the identity added to its centre tap."""
    weight = block.conv1.weight.detach().double().clone()
    centre = weight.shape[-1] // 2
    if isinstance(block.projection, nn.Conv2d):
        weight[:, :, centre, centre] += block.projection.weight.detach().double()[:, :, 0, 0]
    else:
        weight[:, :, centre, centre] += torch.eye(weight.shape[0], dtype=torch.float64)
    return weight


class LoweredHead(nn.Module):
    """The scores before the sigmoid: 1x1 convolution -> InstanceNorm -> adaptive pooling.

    The norm cancels the convolution's bias. For one image the norm is an affine map, with which the pooling commutes.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    pool_rows: Tensor
    pool_columns: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.InstanceNorm2d, pool_rows: Tensor, pool_columns: Tensor) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_buffer("weight", conv.weight.detach().double())
        self.register_buffer("scale", norm.weight.detach().double()[:, None, None])
        self.register_buffer("shift", norm.bias.detach().double()[:, None, None])
        self.register_buffer("pool_rows", pool_rows)
        self.register_buffer("pool_columns", pool_columns.T.contiguous())

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 2 R R"]:
        y = centred(F.conv2d(x, self.weight))
        factor = self.scale / torch.sqrt(spatial_mean(y * y) + self.eps)
        return (self.pool_rows @ y @ self.pool_columns) * factor + self.shift
