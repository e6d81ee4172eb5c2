"""Rotary position embeddings whose sines and cosines are weights of the model.

Source: RoFormer, arXiv 2104.09864, section 3.2.2, for two coordinates as in DINOv3, arXiv 2508.10104, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any  # timm has no common type of its transformers, and nn.Module lacks their attributes

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.model import BackboneRecipe


class RotaryTable(nn.Module):
    """A stand-in for the rotary embedding of timm's transformers, with the interface that they use.

    table: (patches, 2 * head width); the first half holds the sines of every patch, the second half its cosines. Its
    first values are those of timm's own embedding for the grid.
    """

    def __init__(self, computed: nn.Module, grid: Sequence[int]) -> None:
        super().__init__()
        values: Tensor = computed.get_embed(list(grid))  # type: ignore[operator] # timm's embeddings are untyped
        self.table = nn.Parameter(values.detach().to(torch.get_default_dtype()), requires_grad=False)
        self.grid = tuple(grid)

    def get_embed(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the table; raise RecipeError for another grid of patches than the one that it was made for."""
        if shape is not None and tuple(int(n) for n in shape) != self.grid:
            raise RecipeError(
                f"Expected {self.grid[0]} x {self.grid[1]} patches, found {' x '.join(map(str, shape))}: give images "
                "of the size that the backbone was made for."
            )
        return self.table


def rotary_table(
    coordinates: Float[Tensor, "patches 2"], frequencies: Float[Tensor, " quarter"]
) -> Float[Tensor, "patches width"]:
    """Return the table of patches at these rows and columns, in the dtype of the coordinates.

    The angle of a coordinate c at a frequency f is 2 pi c f. The angles of the rows come before those of the columns,
    and all of them fill each half of a head, which the rotation pairs with the other half.
    """
    angles = (2 * torch.pi * coordinates[:, :, None] * frequencies).flatten(1).repeat(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def use_rotary_table(recipe: BackboneRecipe, backbone: Any) -> None:
    """Replace the rotary embedding of timm's model by a table, in place.

    Raises RecipeError when the model does not have one table of sines and cosines for all of its blocks.
    """
    rope = getattr(backbone, "rope", None)
    if rope is None or getattr(backbone, "rope_mixed", False) or not getattr(rope, "rotate_half", False):
        raise RecipeError(
            f"position_embedding 'rotary_table' needs a transformer with the rotary embedding of DINOv3, and "
            f"{recipe.timm} has another or none: set position_embedding to learned."
        )
    backbone.rope = RotaryTable(rope, backbone.patch_embed.grid_size)
