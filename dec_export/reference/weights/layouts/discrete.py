"""Checkpoints of a timm backbone under the classical canonicalizer, whose keys start with `cannonicalizer.`.

Source: the ImageNet program of the published implementation of arXiv 2508.14187. The program's spelling is kept.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.reference.discrete import candidate_phis
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained, any_below

_PREFIX, _OURS = "cannonicalizer.", "DEM."
_CANDIDATES = (f"{_OURS}deform_params_x", f"{_OURS}deform_params_y")


def with_our_keys(state: Weights) -> Weights:
    """Return the weights with `DEM.` in the place of `cannonicalizer.`; others are returned as they are."""
    return {(_OURS + key.removeprefix(_PREFIX) if key.startswith(_PREFIX) else key): v for key, v in state.items()}


def check_candidates(recipe: Recipe, weights: Weights, path: Path) -> None:
    """Raise CheckpointError, which names the first difference, unless the weights hold the recipe's candidates.

    The candidates are not learned, so a checkpoint with others was trained with other `values` or another `limit`.
    Weights that hold no candidates are left to the comparison of keys.
    """
    if recipe.discrete is None or any(key not in weights for key in _CANDIDATES):
        return
    for key, expected in zip(_CANDIDATES, candidate_phis(recipe.discrete), strict=True):
        found = weights[key]
        if found.shape[1:] != expected.shape[1:]:
            return  # as other wrong shapes
        if len(found) != len(expected):
            raise CheckpointError(
                f"'{path}' does not fit recipe '{recipe.name}': '{key}' holds {len(found)} candidates, and the "
                f"recipe's limit of {recipe.discrete.limit} gives {len(expected)}: set canonicalizer.limit to that "
                "of the training."
            )
        differs = torch.nonzero(found.float() != expected)
        if len(differs):
            place = tuple(differs[0].tolist())
            raise CheckpointError(
                f"'{path}' does not fit recipe '{recipe.name}': '{key}' has the step {found[place]:g} at "
                f"{list(place)}, and the recipe's values {list(recipe.discrete.values)} give {expected[place]:g}: set "
                "canonicalizer.values to those of the training."
            )


def _recognise(checkpoint: Checkpoint) -> bool:
    return any_below(_PREFIX, checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    return Pretrained("a whole model", with_our_keys(checkpoint.state), checkpoint.unused_entries())


DISCRETE = Layout("keys that start with 'cannonicalizer.' (a classical canonicalizer)", _recognise, _read)
