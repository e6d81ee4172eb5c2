"""How the backbone's input is made from the model's input inside the graph: resize, crop, normalise.

Source: the image processors that the published transformers-based programs put before their backbones;
docs/semantics.md, section 13.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dec_export.recipe.preparation import PreparationRecipe


def resized(
    image: Float[Tensor, "batch channels _ _"], recipe: PreparationRecipe
) -> Float[Tensor, "batch channels {recipe.size} {recipe.size}"]:
    """Return images resized and cropped as the recipe says, in their own dtype and range of values."""
    size = (recipe.resize, recipe.resize)
    if image.shape[-2:] != size:
        image = F.interpolate(image, size=size, mode=recipe.filter, align_corners=False, antialias=recipe.antialias)
    start = crop_start(recipe)
    return image[..., start : start + recipe.size, start : start + recipe.size]


def crop_start(recipe: PreparationRecipe) -> int:
    """Return the first row and column of the part that is kept, in pixels; that of a centre is rounded down."""
    return (recipe.resize - recipe.size) // 2 if recipe.crop_at == "center" else 0


def prepare(
    image: Float[Tensor, "batch 3 _ _"], recipe: PreparationRecipe | None
) -> Float[Tensor, "batch 3 height width"]:
    """Return the backbone's input (B, 3, size, size) for the model's input; without a recipe they are the same."""
    if recipe is None:
        return image
    mean, std = (
        torch.tensor(values, dtype=image.dtype, device=image.device).view(3, 1, 1)
        for values in (recipe.mean, recipe.std)
    )
    return (resized(image, recipe) - mean) / std
