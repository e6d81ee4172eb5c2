"""The conversion of features from each layout of timm's backbones to maps (B, C, h, w), and back.

A new layout is one entry of `_LAYOUTS`, and its name in `dec_export.recipe.families`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any  # timm has no common type of its transformers, and nn.Module lacks their attributes

import torch
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.families import Layout
from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.backbones.stages import insertion_of

MapTransform = Callable[[Tensor], Tensor]


def token_map(backbone: Any, tokens: Tensor) -> Tensor:
    """Return the patches of tokens (B, T, C) as a map (B, C, h, w), without the prefix tokens."""
    height, width = backbone.patch_embed.grid_size
    patches = tokens[:, _prefix_tokens(backbone, tokens) :].transpose(1, 2)
    return patches.reshape(-1, tokens.shape[2], height, width)


def shifted_token_map(backbone: Any, tokens: Tensor) -> Tensor:
    """Return tokens (B, T, C) as a map (B, C, h, w) that starts one token too early, at the last prefix token.

    It is the map that the published dense DeiT reads: its slice of tokens leaves out the class token and the last
    patch, and takes in the distillation token.
    """
    height, width = backbone.patch_embed.grid_size
    shifted = tokens[:, _prefix_tokens(backbone, tokens) - 1 : -1].transpose(1, 2)
    return shifted.reshape(-1, tokens.shape[2], height, width)


def _prefix_tokens(backbone: Any, tokens: Tensor) -> int:
    """Return the number of tokens before the patches, which is zero until a late class token has joined."""
    height, width = backbone.patch_embed.grid_size
    prefix = int(tokens.shape[1]) - int(height * width)
    if prefix not in (0, backbone.num_prefix_tokens):
        raise RecipeError(
            f"Expected the tokens of {height} x {width} patches, found {tokens.shape[1]} tokens: give images of the "
            "size that the backbone was made for."
        )
    return prefix


def _on_tokens(backbone: Any, tokens: Tensor, transform: MapTransform) -> Tensor:
    """Transform the map of tokens (B, T, C), whose patches are in row-major order; prefix tokens do not change."""
    prefix = _prefix_tokens(backbone, tokens)
    warped = transform(token_map(backbone, tokens)).flatten(2).transpose(1, 2)
    return warped if prefix == 0 else torch.cat([tokens[:, :prefix], warped], dim=1)


def _map_of_channels_last(_: nn.Module, features: Tensor) -> Tensor:
    """Return features (B, h, w, C) as a map."""
    return features.permute(0, 3, 1, 2)


def _on_channels_last(backbone: nn.Module, features: Tensor, transform: MapTransform) -> Tensor:
    """Transform the map of features (B, h, w, C)."""
    return transform(_map_of_channels_last(backbone, features)).permute(0, 2, 3, 1)


def _map_of_channels_first(_: nn.Module, features: Tensor) -> Tensor:
    """Return features (B, C, h, w), which are a map already."""
    return features


def _on_channels_first(_: nn.Module, features: Tensor, transform: MapTransform) -> Tensor:
    """Transform features (B, C, h, w)."""
    return transform(features)


@dataclass(frozen=True)
class _FeatureLayout:
    """The two conversions of one layout of features.

    to_map: a function that returns a backbone's features as a map.
    on_map: a function that returns the features, in their own layout, after a transform of their map.
    """

    to_map: Callable[[nn.Module, Tensor], Tensor]
    on_map: Callable[[nn.Module, Tensor, MapTransform], Tensor]


_LAYOUTS: dict[Layout, _FeatureLayout] = {
    "tokens": _FeatureLayout(token_map, _on_tokens),
    "channels_last": _FeatureLayout(_map_of_channels_last, _on_channels_last),
    "channels_first": _FeatureLayout(_map_of_channels_first, _on_channels_first),
}


def to_map(recipe: BackboneRecipe, backbone: nn.Module, features: Tensor) -> Tensor:
    """Return the features of a block or stage of the backbone as a map (B, C, h, w).

    Raises RecipeError when tokens are not those of the grid of patches that the backbone was made for.
    """
    return _LAYOUTS[insertion_of(recipe).layout].to_map(backbone, features)


def tapped_map(recipe: BackboneRecipe, backbone: Any, place: int, features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the features of the block or stage `place` as the map (B, C, h, w) that a tap shows, in `dtype`.

    With `tap_norm`, the map after the last block without a class token is normalised by SER's `norm_equiv`, which
    computes in `dtype`. Raises RecipeError as `to_map` does.
    """
    if recipe.tap_norm and place + 1 == recipe.cls_insert_layer:
        norm = backbone.norm_equiv
        weight, bias = norm.weight.to(dtype), norm.bias.to(dtype)
        features = torch.nn.functional.layer_norm(features.to(dtype), norm.normalized_shape, weight, bias, norm.eps)
    return to_map(recipe, backbone, features).to(dtype)


def head_map(recipe: Recipe, backbone: nn.Module, features: Tensor) -> Tensor:
    """Return the features as the map (B, C, h, w) that the recipe's head reads.

    It is that of `to_map`, except for a recipe with the published defect "patches_shifted_by_one".
    """
    if "patches_shifted_by_one" in recipe.published_defects:
        return shifted_token_map(backbone, features)
    return to_map(recipe.backbone, backbone, features)


def on_map(recipe: BackboneRecipe, backbone: nn.Module, features: Tensor, transform: MapTransform) -> Tensor:
    """Return the features, in their own layout, after a transform of their map that keeps its shape (B, C, h, w).

    Raises RecipeError when tokens are not those of the grid of patches that the backbone was made for.
    """
    return _LAYOUTS[insertion_of(recipe).layout].on_map(backbone, features, transform)
