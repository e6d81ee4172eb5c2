"""Heads for segmentation, which compute logits at every pixel from feature maps (docs/semantics.md, section 6).

Submodules carry the names of the published implementation (`decoder.conv1`, `decoder.readout.0.0`, ...), so that the
keys of its checkpoints load as they are. Feature maps come in the dtype of the head's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.recipe.model import HeadRecipe


def resize(
    features: Float[Tensor, "batch channels _ _"], size: tuple[int, int]
) -> Float[Tensor, "batch channels {size[0]} {size[1]}"]:
    """Resize features bilinearly, without aligned corners."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class LinearHead(nn.Module):
    """A classifier of every place of one feature map; its logits are upsampled bilinearly to the image's size."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        (last,) = channels
        self.conv1 = nn.Conv2d(last, classes, 1)

    def forward(
        self, features: Sequence[Float[Tensor, "batch _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "batch classes {size[0]} {size[1]}"]:
        return resize(self.conv1(features[0]), size)


class DptHead(nn.Module):
    """A head that fuses maps at half the image's size, the deepest first, and gives logits at the image's size.

    The first map passes its readout and is then not used, as in the published implementation.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int) -> None:
        super().__init__()
        self.readout = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1), nn.GELU()) for c in channels)
        self.fusion_1 = nn.ModuleList(_convolution(width, width) for _ in channels)
        self.fusion_2 = nn.ModuleList(_convolution(width, width) for _ in channels[1:])
        self.head = nn.Sequential(*_convolution(width, width // 2), nn.Conv2d(width // 2, classes, 1))

    def forward(
        self, features: Sequence[Float[Tensor, "batch _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "batch classes {size[0]} {size[1]}"]:
        half = (size[0] // 2, size[1] // 2)
        read = [resize(readout(map_), half) for readout, map_ in zip(self.readout, features, strict=True)]
        fused = read[-1]
        for i in range(len(read) - 2, 0, -1):
            fused = fused + (read[i] + self.fusion_1[i](read[i]))
            fused = fused + self.fusion_2[i](fused)
        logits: Tensor = self.head(resize(fused, size))
        return logits


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
    )


def create_head(recipe: HeadRecipe, channels: Sequence[int], classes: int) -> LinearHead | DptHead:
    """Return the recipe's head for maps with these numbers of channels."""
    if recipe.kind == "linear":
        return LinearHead(channels, classes)
    return DptHead(channels, classes, recipe.width)
