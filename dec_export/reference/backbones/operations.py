"""The operations that a pass of a model computes beside its backbone: warps, and the preparation of its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from dec_export.recipe.model import Recipe
from dec_export.reference.preparation import prepare
from dec_export.reference.warp import Phi, unwarp, warp

Warp = Callable[[Phi, Tensor, "tuple[int, int] | None"], Tensor]


@dataclass(frozen=True)
class Operations:
    """The functions by which a pass warps, unwarps, and makes the backbone's input from the model's input.

    They are those of the reference, or exact rewritings of them. `warp` and `unwarp` take a phi, features (B, C, h, w)
    and the recipe's `deform_resolution`, and return features of the same shape.
    """

    warp: Warp
    unwarp: Warp
    prepare: Callable[[Tensor], Tensor]


def reference_operations(recipe: Recipe) -> Operations:
    """Return the operations of the reference for a recipe."""
    mode = recipe.interpolation_mode
    return Operations(
        warp=partial(warp, mode=mode),
        unwarp=partial(unwarp, mode=mode),
        prepare=partial(prepare, recipe=recipe.backbone.preparation),
    )
