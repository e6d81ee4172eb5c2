"""A canonicalizer's residual block with its work moved to the pooled map.

Four exact rewritings of conv + projection -> InstanceNorm -> Softplus -> MaxPool:
- the 1x1 projection (or the identity) adds to the centre tap of the convolution;
- InstanceNorm cancels whatever is constant over a map, so biases go, and the block's input may be centred: under
  reflect padding a constant stays a constant. Centring keeps E[y^2] - E[y]^2 from cancelling and the
  convolution's rounding small, for flat and bright images above all;
- with the sign of a negative InstanceNorm scale moved into its convolution channel, norm and Softplus are
  increasing, so MaxPool commutes with both and they run on the pooled map;
- Softplus is written max(x, 0) + log(1 + exp(-|x|)), which cannot overflow.

A weight of 16 bits makes the convolution, which is the block's cost, run in 16 bits; statistics and norm do not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dec_export.reference.canonicalizer import ResidualBlock


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow."""
    return x.clamp(min=0) + torch.log(1 + torch.exp(-x.abs()))


def spatial_mean(maps: Tensor) -> Tensor:
    """Mean over the last two axes, (B, C, h, w) -> (B, C, 1, 1), summed in two levels.

    A runtime may add up a whole map in one float32 register, whose error grows with the root of h w; windows first
    bring it to the fourth root.
    """
    height, width = int(maps.shape[-2]), int(maps.shape[-1])
    window = (_divisor_near_root(height), _divisor_near_root(width))
    if window != (1, 1):
        maps = F.avg_pool2d(maps, window)
    return maps.mean(dim=(-2, -1), keepdim=True)


def _divisor_near_root(size: int) -> int:
    return max(divisor for divisor in range(1, int(size**0.5) + 1) if size % divisor == 0)


def centred(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) less their spatial means."""
    return maps - spatial_mean(maps)


class LoweredBlock(nn.Module):
    """`ResidualBlock`, rewritten: (B, c, h, w) -> (B, c', h/p, w/p)."""

    weight: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        scale, shift = block.norm1.weight.detach().double(), block.norm1.bias.detach().double()
        sign = torch.where(scale < 0, -1.0, 1.0).double()
        weight = _fold_projection(block) * sign[:, None, None, None]
        self.eps = block.norm1.eps
        self.pool = block.pool
        self.padding = weight.shape[-1] // 2
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.abs()[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        narrow = centred(x).to(self.weight.dtype)
        padded = F.pad(narrow, [self.padding] * 4, mode="reflect") if self.padding else narrow
        map_ = F.conv2d(padded, self.weight)
        y = map_.to(x.dtype)
        mean = spatial_mean(y)
        variance = (spatial_mean(y * y) - mean * mean).clamp(min=0)
        factor = self.scale / torch.sqrt(variance + self.eps)
        return softplus((self.pool(map_).to(x.dtype) - mean) * factor + self.shift)


def _fold_projection(block: ResidualBlock) -> Tensor:
    """The float64 kernel of conv1 plus the projection, or the identity, at its centre tap."""
    weight = block.conv1.weight.detach().double().clone()
    centre = weight.shape[-1] // 2
    if isinstance(block.projection, nn.Conv2d):
        weight[:, :, centre, centre] += block.projection.weight.detach().double()[:, :, 0, 0]
    else:
        weight[:, :, centre, centre] += torch.eye(weight.shape[0], dtype=torch.float64)
    return weight


class LoweredHead(nn.Module):
    """1x1 convolution -> InstanceNorm -> adaptive pooling: (B, c, h, w) -> (B, 2, R, R), before the sigmoid.

    The convolution's bias cancels; pooling commutes with the affine map that the norm is for one image.
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

    def forward(self, x: Tensor) -> Tensor:
        y = centred(F.conv2d(centred(x), self.weight))
        factor = self.scale / torch.sqrt(spatial_mean(y * y) + self.eps)
        return (self.pool_rows @ y @ self.pool_columns) * factor + self.shift
