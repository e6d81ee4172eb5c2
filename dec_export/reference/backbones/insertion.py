"""Insertion of warps into timm backbones, through hooks: no forward pass of timm is copied.

A place is a number: -1 is the input image, i >= 0 the input (for unwarping: the output) of block or stage i.
Source: the published implementation; docs/semantics.md, section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.model import NEVER, BackboneRecipe, Family, InsertionRecipe, Layout, Recipe
from dec_export.reference.precision import entry_dtype
from dec_export.reference.warp import Phi, unwarp, warp

MapTransform = Callable[[Tensor], Tensor]
Warp = Callable[[Phi, Tensor, "tuple[int, int] | None"], Tensor]
IMAGE_PLACE = -1


# How each family shows its features to the warp; a recipe of family `custom` brings its own.
INSERTIONS: dict[Family, InsertionRecipe] = {
    "vit": InsertionRecipe(stages="blocks", embedding="norm_pre", layout="tokens"),
    "beit": InsertionRecipe(stages="blocks", embedding=None, layout="tokens"),
    "swin": InsertionRecipe(stages="layers", embedding="patch_embed", layout="channels_last", resizes_image=True),
    "resnet": InsertionRecipe(
        stages=("layer1", "layer2", "layer3", "layer4"), embedding="maxpool", layout="channels_first"
    ),
}
# Attributes by which a model is known, beside the modules that are asked for.
_MARKS: dict[Family, tuple[str, ...]] = {"beit": ("rel_pos_bias",)}
_TOKENS = ("num_prefix_tokens", "patch_embed.grid_size")


def insertion_of(recipe: BackboneRecipe) -> InsertionRecipe:
    """Where the backbone's features are: its family's insertion, or its own."""
    return recipe.insertion or INSERTIONS[recipe.family]


def _on_tokens(backbone: Any, tokens: Tensor, transform: MapTransform) -> Tensor:
    """Tokens (B, T, C): prefix tokens stay aside, the rest is a map in row-major order."""
    prefix = _prefix_tokens(backbone, tokens)
    warped = transform(token_map(backbone, tokens)).flatten(2).transpose(1, 2)
    return warped if prefix == 0 else torch.cat([tokens[:, :prefix], warped], dim=1)


def _on_channels_last(_: Any, features: Tensor, transform: MapTransform) -> Tensor:
    """Features (B, h, w, C)."""
    return transform(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _on_channels_first(_: Any, features: Tensor, transform: MapTransform) -> Tensor:
    """Features (B, C, h, w)."""
    return transform(features)


def _prefix_tokens(backbone: Any, tokens: Tensor) -> int:
    """How many tokens stand before the patches; none before the block that a late class token joins at."""
    height, width = backbone.patch_embed.grid_size
    prefix = int(tokens.shape[1]) - int(height * width)
    if prefix not in (0, backbone.num_prefix_tokens):
        raise RecipeError(
            f"Expected the tokens of {height} x {width} patches, found {tokens.shape[1]} tokens: give images of the "
            "size that the backbone was made for."
        )
    return prefix


def token_map(backbone: Any, tokens: Tensor) -> Tensor:
    """The patches of tokens (B, T, C) as a map (B, C, h, w), without the prefix tokens."""
    height, width = backbone.patch_embed.grid_size
    patches = tokens[:, _prefix_tokens(backbone, tokens) :].transpose(1, 2)
    return patches.reshape(-1, tokens.shape[2], height, width)


# Features as (B, C, h, w) maps.
_TO_MAP: dict[Layout, Callable[[Any, Tensor], Tensor]] = {
    "tokens": token_map,
    "channels_last": lambda _, features: features.permute(0, 3, 1, 2),
    "channels_first": lambda _, features: features,
}
# Apply a transform of (B, C, h, w) maps to features as they are laid out.
_ON_MAP: dict[Layout, Callable[[Any, Tensor, MapTransform], Tensor]] = {
    "tokens": _on_tokens,
    "channels_last": _on_channels_last,
    "channels_first": _on_channels_first,
}


def to_map(recipe: BackboneRecipe, backbone: nn.Module, features: Tensor) -> Tensor:
    """Features as a block or stage of the backbone lays them out, as a map (B, C, h, w)."""
    return _TO_MAP[insertion_of(recipe).layout](backbone, features)


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
    marks = [*paths, *_MARKS.get(recipe.family, ()), *(_TOKENS if insertion.layout == "tokens" else ())]
    missing = [mark for mark in marks if not _has(backbone, mark)]
    if missing and recipe.family == "custom":
        raise RecipeError(
            f"timm's {name} has no '{missing[0]}', which the recipe's insertion names: its parts are "
            f"{', '.join(child for child, _ in backbone.named_children())}."
        )
    if missing:
        raise RecipeError(
            f"timm's {name} is not of the family '{recipe.family}' (it has no {missing[0]}): "
            f"choose a model of it, or another family of {', '.join(INSERTIONS)}, or custom."
        )
    if not _stages(recipe, backbone):
        raise RecipeError(f"timm's {name} has no modules in '{insertion.stages}', which the recipe's insertion names.")


def _has(backbone: nn.Module, path: str) -> bool:
    """Whether there is something, be it None, at a dotted path below a module."""
    found: Any = backbone
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def _stages(recipe: BackboneRecipe, backbone: nn.Module) -> list[nn.Module]:
    """The modules whose inputs and outputs are the places i >= 0, in order."""
    stages = insertion_of(recipe).stages
    if isinstance(stages, str):
        found = backbone.get_submodule(stages)
        return list(found) if isinstance(found, (nn.Sequential, nn.ModuleList)) else []
    return [backbone.get_submodule(path) for path in stages]


def assign_places(places: Sequence[int], visited: Sequence[int], count: int) -> dict[int, int]:
    """Which of `count` solved phis each place uses: the n-th visited place of `places` takes phi n.

    `visited` are the places that a backbone passes, in order; further places than phis are left out.
    """
    used = [place for place in visited if place in places]
    return {place: n for n, place in enumerate(used[:count])}


def visited_places(recipe: Recipe, backbone: nn.Module) -> list[int]:
    """The places that this backbone passes, in order."""
    blocks = list(range(len(_stages(recipe.backbone, backbone))))
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


def run_with_warps(
    recipe: Recipe,
    backbone: nn.Module,
    image: Tensor,
    phis: Sequence[Phi],
    warp: Warp = warp,
    unwarp: Warp = unwarp,
) -> Tensor:
    """The backbone's output for an image (B, 3, H, W), with its features warped as the recipe says.

    `warp` and `unwarp` may be replaced by exact rewritings of the reference's. Features are warped, and the output
    is returned, in the image's dtype, whatever the backbone computes in.
    """
    with _warps_inserted(recipe, backbone, image, phis, warp, unwarp) as warped:
        output: Tensor = backbone(warped)
    return output.to(image.dtype)


def feature_maps(
    recipe: Recipe,
    backbone: Any,
    image: Tensor,
    phis: Sequence[Phi],
    warp: Warp = warp,
    unwarp: Warp = unwarp,
) -> list[Tensor]:
    """What the recipe's head reads, in the backbone's dtype: its taps, or the last features; each (B, C, h, w).

    `run_with_warps` says what the arguments are.
    """
    assert recipe.head is not None
    read = stage_inputs if recipe.head.tapped == "input" else stage_outputs
    with (
        read(recipe.backbone, backbone, recipe.head.taps) as tapped,
        _warps_inserted(recipe, backbone, image, phis, warp, unwarp) as warped,
    ):
        last = backbone.forward_features(warped)
    features = [tapped[place] for place in recipe.head.taps] or [last]
    return [to_map(recipe.backbone, backbone, values) for values in features]


@contextmanager
def stage_inputs(recipe: BackboneRecipe, backbone: nn.Module, places: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What goes into the blocks or stages at these places while the block lasts, by place, as the warps leave it."""

    def watch(stage: nn.Module, keep: _Keep) -> Any:
        return stage.register_forward_pre_hook(lambda _, args: keep(args[0]))

    with _watched(recipe, backbone, places, watch) as found:
        yield found


@contextmanager
def stage_outputs(recipe: BackboneRecipe, backbone: nn.Module, places: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What comes out of the blocks or stages at these places while the block lasts, by place, as the warps leave it."""

    def watch(stage: nn.Module, keep: _Keep) -> Any:
        return stage.register_forward_hook(lambda _, __, output: keep(output))

    with _watched(recipe, backbone, places, watch) as found:
        yield found


_Keep = Callable[[Any], None]


@contextmanager
def _watched(
    recipe: BackboneRecipe, backbone: nn.Module, places: Sequence[int], watch: Callable[[nn.Module, _Keep], Any]
) -> Iterator[dict[int, Tensor]]:
    """What `watch` sees at each place; of a stage that is not run, or passes on more than one tensor, nothing."""
    found: dict[int, Tensor] = {}

    def keep_at(place: int) -> _Keep:
        return lambda value: found.update({place: value} if isinstance(value, Tensor) else {})

    stages = _stages(recipe, backbone)
    with _lock_of(backbone), ExitStack() as handles:
        for place in places:
            handles.enter_context(watch(stages[place], keep_at(place)))
        yield found


def stage_count(recipe: Recipe, backbone: nn.Module) -> int:
    """How many of the backbone's blocks or stages its output depends on."""
    if recipe.head is None or not recipe.head.taps:
        return len(_stages(recipe.backbone, backbone))
    return recipe.head.taps[-1] + (recipe.head.tapped == "output")


@contextmanager
def _warps_inserted(
    recipe: Recipe, backbone: nn.Module, image: Tensor, phis: Sequence[Phi], warp: Warp, unwarp: Warp
) -> Iterator[Tensor]:
    """For one pass, let the backbone warp its features; gives the image as the backbone is to see it."""
    insertion = insertion_of(recipe.backbone)
    on_map = _ON_MAP[insertion.layout]
    visited = visited_places(recipe, backbone)
    warps = assign_places(recipe.augment_layer_id, visited, len(phis))
    unwarps = assign_places(recipe.unaugment_layer_id, visited, len(phis))
    resolution = recipe.deform_resolution

    if IMAGE_PLACE in warps:
        image = warp(phis[warps[IMAGE_PLACE]], image, resolution if insertion.resizes_image else None)

    def in_phis_dtype(transform: Warp, phi: Phi, features: Tensor) -> Tensor:
        return transform(phi, features.to(phi.x.dtype), resolution).to(features.dtype)

    def warped(phi: Phi) -> Callable[[Tensor], Tensor]:
        return lambda features: on_map(backbone, features, lambda m: in_phis_dtype(warp, phi, m))

    def unwarped(phi: Phi) -> Callable[[Tensor], Tensor]:
        return lambda features: on_map(backbone, features, lambda m: in_phis_dtype(unwarp, phi, m))

    stages = _stages(recipe.backbone, backbone)
    before = {stages[i]: warped(phis[n]) for i, n in warps.items() if i >= 0}
    after = {stages[i]: unwarped(phis[n]) for i, n in unwarps.items() if i >= 0}
    if IMAGE_PLACE in unwarps and insertion.embedding is not None:
        after[backbone.get_submodule(insertion.embedding)] = unwarped(phis[unwarps[IMAGE_PLACE]])
    with _lock_of(backbone), _hooked(before, after):
        yield image.to(entry_dtype(backbone))


# Hooks lie on the backbone's own modules while a pass lasts: a second thread that ran the same modules meanwhile would
# be warped by the first one's phis. So one thread at a time runs a backbone; a pass may open several of these contexts.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def _lock_of(backbone: nn.Module) -> threading.RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(backbone, threading.RLock())


@contextmanager
def _hooked(before: dict[nn.Module, MapTransform], after: dict[nn.Module, MapTransform]) -> Iterator[None]:
    """Transform the first input of the modules in `before` and the output of those in `after`, for one pass.

    Hooks of others see what the transforms have left.
    """
    with ExitStack() as handles:
        for module, transform in before.items():
            handles.enter_context(
                module.register_forward_pre_hook(lambda _, args, t=transform: (t(args[0]), *args[1:]), prepend=True)
            )
        for module, transform in after.items():
            handles.enter_context(
                module.register_forward_hook(lambda _, __, output, t=transform: t(output), prepend=True)
            )
        yield
