"""The network that self-supervised training trains: the recipe's backbone with a projector for each loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dec_export.data.digits import DigitImages
from dec_export.errors import DecExportError
from dec_export.reference.backbones.late_class_token import LateClassToken, sincos2d
from dec_export.reference.model import create_reference, preprocessing_of

from .self_supervised_plan import SerSettings

# Amplitude of the learned positions at the start. From timm's own start, a noise of 0.02, learning took three times as
# many steps, and fixed waves of amplitude 1 stay in the map, whatever the equivariance loss does.
POSITION_AMPLITUDE = 0.3


class Learner(nn.Module):
    """The recipe's model, whose head is not trained, with the projectors of both losses.

    DecExportError when the recipe's class token joins before the first block, because there is then no map of patches
    alone.
    """

    def __init__(self, settings: SerSettings) -> None:
        super().__init__()
        self.model = create_reference(settings.recipe, settings.seed)
        self.preprocessing = preprocessing_of(settings.recipe)
        backbone = self.model.backbone
        if not isinstance(backbone, LateClassToken) or backbone.insert_at == 0:
            raise DecExportError(
                f"--ser needs a recipe whose cls_insert_layer is 1 or more, but '{settings.recipe.name}' has none: "
                f"name another recipe with --recipe."
            )
        width = backbone.cls_token.shape[-1]
        _start_positions(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.projector = embedding_projector(width, settings.hidden)
            self.patch_projector = patch_projector(width, settings.patch_hidden)

    @property
    def backbone(self) -> LateClassToken:
        """The backbone; the constructor made sure that its class token joins late."""
        found = self.model.backbone
        assert isinstance(found, LateClassToken)
        return found

    @property
    def mapped_block(self) -> int:
        """The block whose output has the equivariance loss, the last one before the class token joins."""
        return int(self.backbone.insert_at) - 1

    def blocks(self, images: Tensor) -> list[Tensor]:
        """The output of every block for images (B, 3, H, W): maps of patches (B, C, h, w), without class tokens."""
        return [_as_map(tokens, self.backbone.grid_of(images)) for tokens in self.backbone.block_outputs(images)]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding and the map of images (B, 3, H, W).

        The embedding (B, C) is the normalised class token. The map (B, C, h, w) is the output of the last block before
        the class token joins.
        """
        backbone = self.backbone
        outputs = backbone.block_outputs(images)
        embedding: Tensor = backbone.norm(outputs[-1])[:, 0]
        return embedding, _as_map(outputs[self.mapped_block], backbone.grid_of(images))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads, (B, C * last_blocks)."""
        backbone = self.backbone
        kept = backbone.block_outputs(images)[-backbone.last_blocks :]
        return torch.cat([backbone.norm(tokens)[:, 0] for tokens in kept], dim=1)

    def inputs_of(self, images: DigitImages) -> NDArray[np.float32]:
        """Composed images as the backbone expects them, (N, 3, H, W)."""
        return images.inputs(self.preprocessing.mean, self.preprocessing.std)


def embedding_projector(width: int, hidden: int) -> nn.Sequential:
    """A network from embeddings (B, width) to (B, hidden): that of Barlow Twins with one hidden layer fewer."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, hidden, bias=False)
    )


def patch_projector(width: int, hidden: int) -> nn.Sequential:
    """A network from patches (..., width) to (..., hidden).

    It projects each patch by itself, so what acts on the places of a map acts on the places of the projected map.
    """
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False)
    )


def _start_positions(backbone: LateClassToken) -> None:
    """Let learned positions start as waves, which tell patches their places from the first step on."""
    if backbone.pos_embed.requires_grad:
        with torch.no_grad():
            waves = sincos2d(backbone.patch_embed.grid_size, backbone.pos_embed.shape[-1])
            backbone.pos_embed.copy_(POSITION_AMPLITUDE * waves)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches of tokens (B, tokens, C) as a map (B, C, h, w). A class token, if there is one, comes first."""
    patches = tokens[:, -grid[0] * grid[1] :]
    return patches.mT.reshape(len(tokens), -1, *grid)
