"""The fitting of a self-supervised backbone to a recipe's, by the kind of the backbone.

A kind of backbone that needs checks or changes of its own is a module beside this one, and a line of `_FITS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any  # timm has no common type of its models

from torch import nn

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import HEAD, Checkpoint, Layout, Pretrained
from dec_export.reference.weights.layouts import layout_of, read_checkpoint
from dec_export.reference.weights.residual import fit_residual
from dec_export.reference.weights.transformer import fit_transformer

_Fit = Callable[[Pretrained, BackboneRecipe, Weights, Path], Pretrained]
_FITS: dict[str, _Fit] = {"resnet": fit_residual}


def backbone_in(checkpoint: Checkpoint, recipe: Recipe, expected: Weights, classifier: list[str]) -> Pretrained | None:
    """Return the backbone of a checkpoint that holds no more; None for the weights of a whole model.

    expected: the weights of the recipe's backbone. classifier: the keys of its classifier.
    Without `cls_insert_layer`, a bare state dict is one of a whole model, unless it is a residual network without a
    classifier; and a file that no layout recognises is left to the strict comparison of names. Raises CheckpointError
    when the content holds no weights, or no transformer although the recipe has `cls_insert_layer`.
    """
    spec = recipe.backbone
    if spec.cls_insert_layer is None:
        layout = layout_of(checkpoint)
        if layout is None or (layout.is_plain and not _lacks_classifier(checkpoint, layout, recipe, classifier)):
            return None
    found = read_checkpoint(checkpoint, expected.keys())
    if found.is_whole_model:
        return None
    fits_by_name = spec.cls_insert_layer is None and spec.family not in _FITS
    return None if fits_by_name and not found.weights.keys() & expected.keys() else found


def _lacks_classifier(checkpoint: Checkpoint, layout: Layout, recipe: Recipe, classifier: list[str]) -> bool:
    """Return whether a bare state dict is a backbone of a kind in `_FITS` that lacks its classifier."""
    alone = recipe.canonicalizer is None and recipe.head is None and recipe.backbone.family in _FITS
    found = layout.read(checkpoint)
    return alone and not found.is_whole_model and not any(key in found.weights for key in classifier)


def fit_backbone(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> Pretrained:
    """Return a copy of a checkpoint's backbone that has the form of the recipe's, whose weights are `expected`.

    Raises CheckpointError when the architectures differ.
    """
    if recipe.cls_insert_layer is not None:
        return fit_transformer(found, recipe, expected, path)
    return _FITS.get(recipe.family, _fit_by_name)(found, recipe, expected, path)


def _fit_by_name(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> Pretrained:
    """Return a copy without a classifier if the recipe's backbone has none; names and shapes are compared later."""
    if recipe.family == "vit" and found.insert_at:
        raise CheckpointError(
            f"'{path}' ({found.layout}) was trained with its class token joining before block {found.insert_at}, "
            f"expected the first block: set cls_insert_layer to {found.insert_at}, or give another checkpoint."
        )
    return found.without([key for key in HEAD if key in found.weights and key not in expected])


def classifier_keys(backbone: nn.Module) -> list[str]:
    """Return the keys of the backbone's linear classifier; there are none if it has no classes."""
    owner: Any = backbone
    classifier = owner.get_classifier()
    parts = classifier if isinstance(classifier, tuple) else (classifier,)
    names = [name for part in parts for name, module in backbone.named_modules() if module is part]
    return [key for key in backbone.state_dict() if key.startswith(tuple(f"{name}." for name in names))]
