"""Small recipes and models of every kind."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dec_export.recipe.families import InsertionRecipe
from dec_export.recipe.model import BackboneRecipe, CanonicalizerRecipe, HeadRecipe, Recipe
from dec_export.reference.model import DecModel, create_reference
from tests.conftest import SMALL_CANONICALIZER, photographs, randomised

CONVNEXT = InsertionRecipe(stages="stages", embedding="stem", layout="channels_first")
# The smallest model of each layout: class token; registers and average pooling; BEiT; Swin; ResNet; one of no family.
MODELS = {
    "vit": ("test_vit", "vit", 160),
    "registers": ("test_vit2", "vit", 64),
    "beit": ("beit_base_patch16_224", "beit", 224),
    "swin": ("swin_tiny_patch4_window7_224", "swin", 224),
    "resnet": ("test_resnet", "resnet", 160),
    "convnext": ("test_convnext", "custom", 160),
}
LINEAR = HeadRecipe(kind="linear")
DPT = HeadRecipe(kind="dpt", taps=(0, 2, 5), width=8)
# Of the transformer whose class token joins late.
DEPTH, WIDTH, SIZE, PATCH = 4, 24, 64, 8


def recipe_for(timm_name: str, family: str, size: int = 224, **fields: object) -> Recipe:
    insertion = CONVNEXT if family == "custom" else None
    backbone = BackboneRecipe(timm=timm_name, family=family, image_size=size, num_classes=7, insertion=insertion)
    return Recipe(name="test", backbone=backbone, canonicalizer=SMALL_CANONICALIZER, **fields)


def segmenter(
    head: HeadRecipe = LINEAR, places: tuple[int, ...] = (0, 1), family: str = "vit", timm: str = "test_vit"
) -> DecModel:
    recipe = Recipe(
        name="small",
        task="segmentation",
        backbone=BackboneRecipe(timm=timm, family=family, image_size=160, num_classes=5),
        canonicalizer=SMALL_CANONICALIZER,
        head=head,
        augment_layer_id=places,
        unaugment_layer_id=places,
    )
    return randomised(create_reference(recipe)).double()


def image(count: int = 2) -> Tensor:
    return torch.from_numpy(photographs(160, count)).double()


def late_token_recipe(insert_at: int = 2, canonicalizer: CanonicalizerRecipe | None = None, **backbone: Any) -> Recipe:
    sizes = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 3}
    return Recipe(
        name="late",
        backbone=BackboneRecipe(
            **{
                "timm": "vit_tiny_patch16_224",
                "family": "vit",
                "image_size": SIZE,
                "num_classes": 7,
                "timm_args": sizes,
                "cls_insert_layer": insert_at,
                **backbone,
            }
        ),
        canonicalizer=canonicalizer,
        augment_layer_id=(-100,) if canonicalizer is None else (-1, 0, 1),
    )


def formula_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return waves of the size of initial weights, around one for scales and around zero for others, and never zero."""
    weights = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        count = math.prod(shape)
        wave = torch.sin(torch.arange(count, dtype=torch.float64) * (0.7 + 0.01 * (k % 7)) + k).reshape(shape)
        if len(shape) > 1:
            weights[name] = wave * math.sqrt(2 / (math.prod(shape[1:]) or 1))
        else:
            weights[name] = 0.1 * wave + (1.0 if name.endswith("weight") else 0.0)
    return weights
