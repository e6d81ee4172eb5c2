"""Checks that a self-supervised residual network is that of the recipe, and leaves its projection head out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import RESIDUAL_HEAD, Pretrained

_BLOCK = re.compile(r"layer([0-9]{1,4})\.([0-9]{1,4})\.")
# The classifier of SER's ResNet-50. Its forward pass does not use it, so it keeps its random initial weights, which are
# nevertheless stored with the backbone. The classifier of a linear evaluation has the keys `RESIDUAL_HEAD`.
_UNUSED_HEAD = "head."


def fit_residual(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> Pretrained:
    """Return a copy without a projection head, and without the classifier that SER's network does not use.

    A trained classifier is left out as well if the recipe's backbone has none.
    found: the checkpoint's backbone.
    expected: the weights of the recipe's backbone before the checkpoint is loaded.
    Raises CheckpointError when the stages differ.
    """
    stored, wanted = _blocks(found.weights), _blocks(expected)
    if not stored:
        names = ", ".join(list(found.weights)[:3]) or "no weights"
        raise CheckpointError(
            f"'{path}' ({found.layout}) holds no residual network: expected keys such as 'layer1.0.conv1.weight', "
            f"found {names}; give the checkpoint of the backbone."
        )
    if stored != wanted:
        raise CheckpointError(
            f"'{path}' ({found.layout}) has stages of {_in_words(stored)} blocks, expected the {_in_words(wanted)} of "
            f"{recipe.timm}: name the timm model that was trained."
        )
    unused = [key for key in found.weights if _is_head(key) and not (key in RESIDUAL_HEAD and key in expected)]
    return replace(found, insert_at=None).without(unused)


def _is_head(key: str) -> bool:
    """Return whether a weight follows the last stage; MoCo v3 puts its projection head in the classifier's place."""
    return key.startswith((_UNUSED_HEAD, "fc."))


def _blocks(weights: Weights) -> list[int]:
    """Return the number of blocks of each stage, in the order of the stages."""
    blocks = {(int(match[1]), int(match[2])) for key in weights if (match := _BLOCK.match(key))}
    return [count for _, count in sorted(Counter(stage for stage, _ in blocks).items())]


def _in_words(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks))
