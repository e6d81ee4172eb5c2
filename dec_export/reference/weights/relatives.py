"""The snapshot of a published soft equivariant model: its file of weights, and their fit to a recipe."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.recipe.reading import validate
from dec_export.recipe.relatives import CONFIG_NAME, relative_document
from dec_export.reference.backbones.rotary import rotary_table
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import Pretrained
from dec_export.reference.weights.layouts.soft_equivariance import COORDINATES, config_beside

WEIGHTS_NAME = "model.safetensors"
# The base of DINOv3's frequencies; arXiv 2508.10104, and `rope_theta` of its configuration in transformers.
_ROTARY_BASE = 100.0
_TABLE, _POSITIONS = "rope.table", "pos_embed"
# What a snapshot decides of a recipe; its user may choose another size of image for learned positions.
_DECIDED = ("timm", "num_classes", "layer_norm_eps", "position_embedding")


def weights_file(path: Path) -> Path:
    """Return the file of weights in the folder of a snapshot, or the file itself.

    Raises CheckpointError when the folder holds no single file of weights in the safetensors format.
    """
    if not path.is_dir():
        return path
    file = path / WEIGHTS_NAME
    if not file.is_file():
        raise CheckpointError(
            f"The folder '{path}' holds no {WEIGHTS_NAME}, in which a published snapshot has its weights: download the "
            "whole snapshot, or give a file."
        )
    return file


def folded_in_words(path: Path) -> str:
    """Return the end of a sentence about a snapshot's weights: what its projections are folded into."""
    config = config_beside(path)
    softness = {"patch embedding": config.soft_thresholding, "positions": config.soft_thresholding_pos}
    folded = [f"the {part}" for part, value in softness.items() if value < 1]
    return (
        f", with projections folded into {' and '.join(folded)}" if folded else ", whose softness of 1 projects nothing"
    )


def fit_relative(recipe: Recipe, found: Pretrained, expected: Weights, path: Path) -> Pretrained:
    """Return a snapshot's weights as the recipe's model has them: its positions on the recipe's grid of patches.

    expected: the model's weights before the checkpoint is loaded, under the published keys.
    Raises CheckpointError, which names the first difference, when the recipe is not that of the snapshot.
    """
    _check_recipe(recipe, path)
    weights = dict(found.weights)
    if COORDINATES in weights and _TABLE in expected:
        weights[_TABLE] = _table(weights.pop(COORDINATES), expected[_TABLE], path)
        names = {**found.names, _TABLE: found.names[COORDINATES]}
        return replace(found, weights=weights, names=names)
    if _POSITIONS in weights and _POSITIONS in expected:
        weights[_POSITIONS] = _interpolated(weights[_POSITIONS], expected[_POSITIONS])
    return replace(found, weights=weights)


def _check_recipe(recipe: Recipe, path: Path) -> None:
    config = config_beside(path)
    wanted = validate(Recipe, relative_document(config, recipe.name), f"'{path.with_name(CONFIG_NAME)}'").backbone
    for field in _DECIDED:
        value, own = getattr(wanted, field), getattr(recipe.backbone, field)
        if own != value and not (field == "timm" and own.split(".")[0] == value):
            raise CheckpointError(
                f"'{path}' is a model with backbone.{field} {value}, as its {CONFIG_NAME} says, and recipe "
                f"'{recipe.name}' has {own}: import the recipe from that {CONFIG_NAME}."
            )


def _table(coordinates: Tensor, wanted: Tensor, path: Path) -> Tensor:
    """Return the table of sines and cosines for DINOv3's coordinates, with the shape of `wanted`.

    The frequencies are 1 / base^(i / q) for i = 0, ..., q-1, where a head has 4 q channels, rounded to float32 as
    transformers has them.
    """
    quarter = wanted.shape[1] // 8
    if coordinates.shape[0] != wanted.shape[0]:
        found, own = (math.isqrt(n) for n in (coordinates.shape[0], wanted.shape[0]))
        raise CheckpointError(
            f"'{path}' has positions for {found} x {found} patches, and the recipe's images have {own} x {own}: leave "
            "input.image_size and backbone.image_size as they were imported."
        )
    exponents = torch.arange(quarter, dtype=torch.float32) / quarter
    return rotary_table(coordinates, (1 / _ROTARY_BASE**exponents).double())


def _interpolated(positions: Tensor, wanted: Tensor) -> Tensor:
    """Return positions (1, 1 + n, C) on the grid of `wanted`, bicubic in float64; unchanged if they have it already.

    transformers 4.57 interpolates to the size of the grid, without antialiasing, at every pass.
    """
    sides = [math.isqrt(max(p.shape[1] - 1, 0)) if p.ndim == 3 else 0 for p in (positions, wanted)]
    if positions.shape == wanted.shape or min(sides) < 1 or sides[0] ** 2 != positions.shape[1] - 1:
        return positions
    positions = positions.double()
    grid = positions[:, 1:].reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
