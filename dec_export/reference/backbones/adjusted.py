"""The parts in which a recipe's backbone differs from timm's model: the epsilon of its norms, positions, readout."""

from __future__ import annotations

from typing import Any  # timm has no common type of its transformers, and nn.Module lacks their attributes

import torch
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.model import BackboneRecipe
from dec_export.reference.backbones.rotary import use_rotary_table


class TokenAndMean(nn.Module):
    """The class token beside the mean of the patch tokens, as the classifier of DINOv2 in transformers reads them.

    Source: arXiv 2304.07193, its linear evaluation; the library transformers, `Dinov2ForImageClassification`.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, 2 C) of normalised tokens (B, prefix + patches, C), whose first is the class token."""
        return torch.cat([tokens[:, 0], tokens[:, self.prefix :].mean(dim=1)], dim=1)


def adjust(recipe: BackboneRecipe, backbone: Any) -> None:
    """Give timm's model, in place, the norms, the positions and the readout that the recipe says.

    Raises RecipeError for positions or a readout that the model has no place for.
    """
    if recipe.layer_norm_eps is not None:
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = recipe.layer_norm_eps
    if recipe.position_embedding == "rotary_table":
        use_rotary_table(recipe, backbone)
    if recipe.readout == "token_and_mean":
        _read_token_and_mean(recipe, backbone)


def _read_token_and_mean(recipe: BackboneRecipe, backbone: Any) -> None:
    """Put `TokenAndMean` where timm's transformers have their attention pooling, before the classifier."""
    if getattr(backbone, "attn_pool", True) is not None or getattr(backbone, "cls_token", None) is None:
        raise RecipeError(
            f"readout 'token_and_mean' needs a vision transformer of timm with a class token and without attention "
            f"pooling, found '{recipe.timm}': set readout to 'timm'."
        )
    backbone.attn_pool, backbone.pool_include_prefix = TokenAndMean(backbone.num_prefix_tokens), True
    if isinstance(backbone.head, nn.Linear):
        backbone.head = nn.Linear(2 * backbone.embed_dim, backbone.num_classes)
