"""The places of a timm backbone: which modules they are, which of them a recipe uses, and whether they exist.

A place is a number: -1 is the input image, i >= 0 the input (for unwarping: the output) of block or stage i.
Source: the published implementation; docs/semantics.md, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dec_export.errors import RecipeError
from dec_export.recipe.families import CUSTOM, FAMILIES, InsertionRecipe
from dec_export.recipe.model import NEVER, BackboneRecipe, Recipe

IMAGE_PLACE = -1
# What tokens need to become a map.
_TOKENS = ("num_prefix_tokens", "patch_embed.grid_size")


def insertion_of(recipe: BackboneRecipe) -> InsertionRecipe:
    """Where the backbone's features are: its own insertion, or its family's."""
    return recipe.insertion or FAMILIES[recipe.family].insertion


def stages_of(recipe: BackboneRecipe, backbone: nn.Module) -> list[nn.Module]:
    """The modules whose inputs and outputs are the places i >= 0, in order; none when the path is not a list."""
    stages = insertion_of(recipe).stages
    if isinstance(stages, str):
        found = backbone.get_submodule(stages)
        return list(found) if isinstance(found, (nn.Sequential, nn.ModuleList)) else []
    return [backbone.get_submodule(path) for path in stages]


def stage_count(recipe: Recipe, backbone: nn.Module) -> int:
    """How many of the backbone's blocks or stages its output depends on."""
    if recipe.head is None or not recipe.head.taps:
        return len(stages_of(recipe.backbone, backbone))
    return recipe.head.taps[-1] + (recipe.head.tapped == "output")


def assign_places(places: Sequence[int], visited: Sequence[int], count: int) -> dict[int, int]:
    """Which of `count` solved phis each place uses: the n-th visited place of `places` takes phi n.

    `visited` are the places that a backbone passes, in order; further places than phis are left out.
    """
    used = [place for place in visited if place in places]
    return {place: n for n, place in enumerate(used[:count])}


def visited_places(recipe: Recipe, backbone: nn.Module) -> list[int]:
    """The places that this backbone passes, in order."""
    blocks = list(range(len(stages_of(recipe.backbone, backbone))))
    return blocks if insertion_of(recipe.backbone).embedding is None else [IMAGE_PLACE, *blocks]


def check_places(recipe: Recipe, backbone: nn.Module) -> None:
    """Raise RecipeError when the recipe asks for warps, but the backbone passes none of its places."""
    visited = visited_places(recipe, backbone)
    wanted = {*recipe.augment_layer_id, *recipe.unaugment_layer_id} - {NEVER}
    if wanted and not wanted & set(visited):
        raise RecipeError(
            f"recipe '{recipe.name}': none of the places {sorted(wanted)} exists in {recipe.backbone.timm}, "
            f"which passes {visited[0]} to {visited[-1]}: the canonicalizer would have no effect."
        )
    taps = () if recipe.head is None else recipe.head.taps
    if taps and taps[-1] > visited[-1]:
        raise RecipeError(
            f"recipe '{recipe.name}': the head taps place {taps[-1]}, but {recipe.backbone.timm} ends at {visited[-1]}."
        )


def check_tap(recipe: Recipe, backbone: nn.Module, place: int) -> None:
    """Raise RecipeError unless the recipe's output depends on a block or stage at `place`, whose map can be shown."""
    count = stage_count(recipe, backbone)
    if not 0 <= place < count:
        raise RecipeError(
            f"recipe '{recipe.name}': a feature map is that after one of the blocks or stages 0 to {count - 1} of "
            f"{recipe.backbone.timm}, found {place}."
        )


def check_family(recipe: BackboneRecipe, backbone: nn.Module) -> None:
    """Raise RecipeError unless the backbone is built as the recipe's family, or its own insertion, says."""
    insertion, name = insertion_of(recipe), type(backbone).__name__
    paths = [insertion.stages] if isinstance(insertion.stages, str) else [*insertion.stages]
    paths += [insertion.embedding] if insertion.embedding else []
    marks = [*paths, *_marks(recipe), *(_TOKENS if insertion.layout == "tokens" else ())]
    missing = [mark for mark in marks if not _has(backbone, mark)]
    if missing and recipe.family == CUSTOM:
        raise RecipeError(
            f"timm's {name} has no '{missing[0]}', which the recipe's insertion names: its parts are "
            f"{', '.join(child for child, _ in backbone.named_children())}."
        )
    if missing:
        raise RecipeError(
            f"timm's {name} is not of the family '{recipe.family}' (it has no {missing[0]}): "
            f"choose a model of it, or another family of {', '.join(FAMILIES)}, or custom."
        )
    if not stages_of(recipe, backbone):
        raise RecipeError(f"timm's {name} has no modules in '{insertion.stages}', which the recipe's insertion names.")


def _marks(recipe: BackboneRecipe) -> tuple[str, ...]:
    return () if recipe.family == CUSTOM else FAMILIES[recipe.family].marks


def _has(backbone: nn.Module, path: str) -> bool:
    """Whether there is something, be it None, at a dotted path below a module."""
    found: Any = backbone
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
