"""A vision transformer whose class token joins before an inner block, so that earlier blocks read only patches.

Source: Soft Equivariance Regularization, arXiv 2603.06693, and its published implementation. Up to the block that the
class token enters, the patch tokens form a map on which a group can act.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast  # timm has no common type of its transformers, and nn.Module lacks their attributes

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.model import BackboneRecipe

# The wavelengths of the fixed position embedding reach from 2 pi to 10000 times 2 pi patches, as in MoCo v3.
_TEMPERATURE = 10000.0
# The parts that a transformer must not have beside blocks and one class token, by timm's attribute for each.
_UNSUPPORTED = {"reg_token": "register tokens", "attn_pool": "attention pooling"}


class LateClassToken(nn.Module):
    """timm's transformer with its class token concatenated before block `insert_at`; 0 is timm's own forward pass.

    It has timm's submodules and parameters under timm's names, so that checkpoints keep their keys. `pos_embed` is
    (1, 1 + patches, C), and its first row is added to the class token where the token enters.
    last_blocks: the number of last blocks whose normalised class tokens the head reads, the deepest last, as in the
    linear evaluation of DINO and SER.
    avgpool_patchtokens: whether the head also reads the mean of the last block's normalised patch tokens. As in that
    linear evaluation, its input then alternates between a channel of the class token and that channel of the mean.
    norm_equiv: SER's norm of the map after block `insert_at - 1`; it does not change the logits. None without it.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        vit: Any,
        insert_at: int,
        last_blocks: int = 1,
        *,
        avgpool_patchtokens: bool = False,
        tap_norm: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed, self.pos_drop, self.norm_pre = vit.patch_embed, vit.pos_drop, vit.norm_pre
        self.blocks, self.norm = vit.blocks, vit.norm
        self.cls_token, self.pos_embed = vit.cls_token, vit.pos_embed
        self.insert_at, self.last_blocks = insert_at, last_blocks
        self.avgpool_patchtokens = avgpool_patchtokens
        # Images of other sizes have other grids of patches; the positions are resampled for them.
        self.patch_embed.strict_img_size = False
        channels, classes = self.cls_token.shape[-1], vit.num_classes
        parts = last_blocks + avgpool_patchtokens
        self.head = vit.head if parts == 1 or not classes else nn.Linear(parts * channels, classes)
        self.norm_equiv = nn.LayerNorm(channels, eps=vit.norm.eps) if tap_norm else None

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, classes) of images (B, 3, H, W)."""
        kept = [self.norm(tokens) for tokens in self.block_outputs(image)[-self.last_blocks :]]
        read = torch.cat([tokens[:, 0] for tokens in kept], dim=1)
        if self.avgpool_patchtokens:
            read = torch.stack([read, kept[-1][:, 1:].mean(dim=1)], dim=2).flatten(1)
        logits: Tensor = self.head(read)
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the head, as the models of timm do."""
        return cast("nn.Module", self.head)

    def forward_features(self, image: Tensor) -> Tensor:
        """Return the normalised tokens after the last block, (B, 1 + patches, C)."""
        tokens: Tensor = self.norm(self.block_outputs(image)[-1])
        return tokens

    def patch_tokens(self, image: Tensor) -> Tensor:
        """Return the input of the first block without a class token, (B, patches, C)."""
        tokens: Tensor = self.patch_embed(image)
        positions = self._positions(image)[:, 1:]
        embedded: Tensor = self.norm_pre(self.pos_drop(tokens + positions))
        return embedded

    def block_outputs(self, image: Tensor) -> list[Tensor]:
        """Return the output of every block, (B, tokens, C); the class token comes first from `insert_at` on."""
        tokens = self.patch_tokens(image)
        found = []
        for i, block in enumerate(self.blocks):
            if i == self.insert_at:
                entering = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype)
                tokens = torch.cat([entering.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            tokens = block(tokens)
            found.append(tokens)
        return found

    def _positions(self, image: Tensor) -> Tensor:
        """Return the position embedding for this size of image, (1, 1 + patches, C)."""
        grid, positions = self.grid_of(image), cast("Tensor", self.pos_embed)
        if grid == tuple(self.patch_embed.grid_size):
            return positions
        resampled: Tensor = resample_abs_pos_embed(positions, list(grid), list(self.patch_embed.grid_size))
        return resampled

    def grid_of(self, image: Tensor) -> tuple[int, int]:
        """Return the rows and columns of the map of patches of images (B, 3, H, W)."""
        (height, width), patch = image.shape[-2:], self.patch_embed.patch_size
        return int(height // patch[0]), int(width // patch[1])


def insert_class_token(recipe: BackboneRecipe, vit: nn.Module) -> LateClassToken:
    """Return timm's transformer, changed by the recipe's `cls_insert_layer` and `position_embedding`.

    Raises RecipeError when it has no blocks, no class token, or no such block.
    """
    insert_at = recipe.cls_insert_layer
    assert insert_at is not None
    _check_transformer(recipe, vit)
    depth = len(vit.blocks)  # type: ignore[arg-type] # checked above
    if insert_at >= depth:
        raise RecipeError(f"cls_insert_layer must be a block of {recipe.timm}, 0 to {depth - 1}, found {insert_at}.")
    if insert_at > depth - recipe.last_blocks:
        raise RecipeError(
            f"the head reads the class tokens of the last {recipe.last_blocks} of {depth} blocks, so cls_insert_layer "
            f"must be at most {depth - recipe.last_blocks}, found {insert_at}."
        )
    backbone = LateClassToken(
        vit,
        insert_at,
        recipe.last_blocks,
        avgpool_patchtokens=recipe.avgpool_patchtokens,
        tap_norm=recipe.tap_norm,
    )
    if recipe.position_embedding == "sincos2d":
        positions = sincos2d(tuple(backbone.patch_embed.grid_size), backbone.pos_embed.shape[-1])
        backbone.pos_embed = nn.Parameter(positions.to(backbone.pos_embed.dtype), requires_grad=False)
    return backbone


def _check_transformer(recipe: BackboneRecipe, vit: nn.Module) -> None:
    why = _why_not(vit)
    if why is not None:
        raise RecipeError(
            f"cls_insert_layer needs a plain vision transformer with one class token, and {recipe.timm} {why}: choose "
            "vit_small_patch16_224 or the like."
        )


def _why_not(vit: Any) -> str | None:
    """Return why a model of timm is not a plain vision transformer, or None if it is one."""
    for part in ("blocks", "cls_token", "pos_embed", "norm_pre"):
        if getattr(vit, part, None) is None:
            return f"has no {part}"
    for part, words in _UNSUPPORTED.items():
        if getattr(vit, part, None) is not None:
            return f"has {words}"
    if not isinstance(vit.patch_embed, PatchEmbed) or not vit.patch_embed.flatten:
        return "has other patches than linear ones of one size of image"
    if not isinstance(vit.norm_pre, nn.Identity):
        return "has a norm before its blocks"
    if vit.pos_embed.shape[1] != vit.patch_embed.num_patches + 1:
        return "has no position of its own for the class token"
    return None if vit.global_pool == "token" else "does not classify by its class token"


def sincos2d(grid: Sequence[int], channels: int) -> Tensor:
    """Return the fixed position embedding of MoCo v3, (1, 1 + rows * columns, channels) float64.

    The first row, that of the class token, is zero. The first half of the channels encodes the row of a patch, the
    second half its column; in each half, sines stand before cosines. Raises RecipeError when the number of channels is
    not a multiple of four.
    """
    if channels % 4:
        raise RecipeError(f"position_embedding sincos2d needs a width that divides by 4, found {channels}.")
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    frequencies = _TEMPERATURE ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    along_rows, along_columns = (
        torch.cat([angles.sin(), angles.cos()], dim=-1)
        for angles in (rows[:, None] * frequencies, columns[:, None] * frequencies)
    )
    size = (int(grid[0]), int(grid[1]), -1)
    positions = torch.cat([along_rows[:, None].expand(size), along_columns[None].expand(size)], dim=-1)
    return torch.cat([torch.zeros(1, channels, dtype=torch.float64), positions.reshape(-1, channels)])[None]
