"""The preparation of the backbone's input, as two matrix products and one multiplication and addition.

A resize between fixed sizes is linear and separable, and a crop chooses rows of its matrices, so the result is exact
for every filter, on every runtime, also where ONNX's Resize has no such filter.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.lowering.matrices import resize_matrix
from dec_export.recipe.preparation import PreparationRecipe
from dec_export.reference.preparation import crop_start


class LoweredPreparation(nn.Module):
    """A module that computes `reference.preparation.prepare` for images of one size."""

    resize: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(self, recipe: PreparationRecipe, size: int) -> None:
        super().__init__()
        start = crop_start(recipe)
        matrix = torch.eye(size, dtype=torch.float64)
        if recipe.resize != size:
            matrix = resize_matrix(
                size, recipe.resize, align_corners=False, antialias=recipe.antialias, mode=recipe.filter
            )
        kept = matrix[start : start + recipe.size]
        is_identity = kept.shape == matrix.shape and recipe.resize == size
        self.register_buffer("resize", None if is_identity else kept.contiguous())
        for name, values in (("mean", recipe.mean), ("std", recipe.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).view(3, 1, 1))

    def forward(self, image: Float[Tensor, "batch 3 _ _"]) -> Float[Tensor, "batch 3 height width"]:
        if self.resize is not None:
            image = self.resize @ image @ self.resize.T
        return (image - self.mean) / self.std
