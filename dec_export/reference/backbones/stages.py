"""The places of a timm backbone at which a recipe may warp features, and checks that they exist.

A place is a number: -1 is the input image, and i >= 0 is the input (for unwarping, the output) of block or stage i.
Source: the published implementation; docs/semantics.md, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dec_export.errors import RecipeError
from dec_export.recipe.families import CUSTOM, FAMILIES, InsertionRecipe
from dec_export.recipe.model import NEVER, BackboneRecipe, Recipe

IMAGE_PLACE = -1
# The attributes of a backbone that the conversion of its tokens to a map needs.
_TOKENS = ("num_prefix_tokens", "patch_embed.grid_size")


def insertion_of(recipe: BackboneRecipe) -> InsertionRecipe:
    """Return the insertion of a backbone, which says where its features are: its own, or its family's."""
    return recipe.insertion or FAMILIES[recipe.family].insertion


def stages_of(recipe: BackboneRecipe, backbone: nn.Module) -> list[nn.Module]:
    """Return the modules of the places i >= 0 in order; there are none when the path does not name a list."""
    stages = insertion_of(recipe).stages
    if isinstance(stages, str):
        found = backbone.get_submodule(stages)
        return list(found) if isinstance(found, (nn.Sequential, nn.ModuleList)) else []
    return [backbone.get_submodule(path) for path in stages]


def ends_of(recipe: BackboneRecipe, backbone: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs end the places i >= 0 in order, which are the stages in most models."""
    ends = insertion_of(recipe).ends
    return stages_of(recipe, backbone) if ends is None else [backbone.get_submodule(path) for path in ends]


def embedding_of(recipe: BackboneRecipe, backbone: nn.Module) -> nn.Module | None:
    """Return the module whose output belongs to place -1; None when the backbone never passes that place."""
    path = insertion_of(recipe).embedding
    return None if path is None else backbone.get_submodule(path)


def stage_count(recipe: Recipe, backbone: nn.Module) -> int:
    """Return how many of the backbone's blocks or stages the model's output depends on."""
    if recipe.head is None or not recipe.head.taps:
        return len(stages_of(recipe.backbone, backbone))
    return recipe.head.taps[-1] + (recipe.head.tapped == "output")


def assign_places(places: Sequence[int], visited: Sequence[int], count: int) -> dict[int, int]:
    """Return which of `count` solved phis each place uses: the n-th visited place of `places` takes phi n.

    `visited` holds the places that a backbone passes, in order. Places for which there is no phi are left out.
    """
    used = [place for place in visited if place in places]
    return {place: n for n, place in enumerate(used[:count])}


def visited_places(recipe: Recipe, backbone: nn.Module) -> list[int]:
    """Return the places that this backbone passes, in order."""
    blocks = list(range(len(stages_of(recipe.backbone, backbone))))
    return blocks if insertion_of(recipe.backbone).embedding is None else [IMAGE_PLACE, *blocks]


def warped_places(recipe: Recipe, backbone: nn.Module, count: int) -> dict[int, int]:
    """Return which of `count` phis warps each place of the model; a discrete canonicalizer warps the model's input."""
    if recipe.discrete is not None:
        return {IMAGE_PLACE: 0}
    return assign_places(recipe.augment_layer_id, visited_places(recipe, backbone), count)


def check_places(recipe: Recipe, backbone: nn.Module) -> None:
    """Raise RecipeError when the recipe asks for warps, but the backbone passes none of its places."""
    visited = visited_places(recipe, backbone)
    wanted = {*recipe.augment_layer_id, *recipe.unaugment_layer_id} - {NEVER}
    # A discrete canonicalizer warps the model's input, which backbones of every family have.
    if recipe.discrete is None and wanted and not wanted & set(visited):
        raise RecipeError(
            f"recipe '{recipe.name}': none of the places {sorted(wanted)} exists in {recipe.backbone.timm}, "
            f"which passes {visited[0]} to {visited[-1]}: the canonicalizer would have no effect."
        )
    layout = insertion_of(recipe.backbone).layout
    if "patches_shifted_by_one" in recipe.published_defects and layout != "tokens":
        raise RecipeError(
            f"recipe '{recipe.name}': patches_shifted_by_one needs a backbone of tokens, but the features of "
            f"{recipe.backbone.timm} are {layout}: leave it out."
        )
    taps = () if recipe.head is None else recipe.head.taps
    if taps and taps[-1] > visited[-1]:
        raise RecipeError(
            f"recipe '{recipe.name}': the head taps place {taps[-1]}, but {recipe.backbone.timm} ends at {visited[-1]}."
        )
    if taps and taps[0] < visited[0]:
        raise RecipeError(
            f"recipe '{recipe.name}': the head taps place {taps[0]}, but {recipe.backbone.timm} starts at {visited[0]}."
        )


def check_tap(recipe: Recipe, backbone: nn.Module, place: int) -> None:
    """Raise RecipeError unless the model has a block or stage at `place` on which its output depends."""
    count = stage_count(recipe, backbone)
    if not 0 <= place < count:
        raise RecipeError(
            f"recipe '{recipe.name}': expected one of the blocks or stages 0 to {count - 1} of {recipe.backbone.timm} "
            f"for the feature map, found {place}."
        )


def check_family(recipe: BackboneRecipe, backbone: nn.Module) -> None:
    """Raise RecipeError unless the backbone has the modules that the recipe's family or its insertion names."""
    insertion, name = insertion_of(recipe), type(backbone).__name__
    paths = [insertion.stages] if isinstance(insertion.stages, str) else [*insertion.stages]
    paths += [*(insertion.ends or ()), *([insertion.embedding] if insertion.embedding else [])]
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
            f"choose a model of that family, or another of the families {', '.join(FAMILIES)} and custom."
        )
    if not stages_of(recipe, backbone):
        raise RecipeError(f"timm's {name} has no modules in '{insertion.stages}', which the recipe's insertion names.")


def _marks(recipe: BackboneRecipe) -> tuple[str, ...]:
    return () if recipe.family == CUSTOM else FAMILIES[recipe.family].marks


def _has(backbone: nn.Module, path: str) -> bool:
    """Return whether a module has an attribute at a dotted path, even if its value is None."""
    found: object = backbone
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
