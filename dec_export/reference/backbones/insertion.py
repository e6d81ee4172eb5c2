"""Insertion of warps into timm backbones, through hooks: no forward pass of timm is copied.

Source: the published implementation; docs/semantics.md, section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.backbones.maps import MapTransform, on_map, to_map
from dec_export.reference.backbones.stages import IMAGE_PLACE, assign_places, insertion_of, stages_of, visited_places
from dec_export.reference.precision import entry_dtype
from dec_export.reference.warp import Phi, unwarp, warp

Warp = Callable[[Phi, Tensor, "tuple[int, int] | None"], Tensor]


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

    stages = stages_of(recipe, backbone)
    with _lock_of(backbone), ExitStack() as handles:
        for place in places:
            handles.enter_context(watch(stages[place], keep_at(place)))
        yield found


@contextmanager
def _warps_inserted(
    recipe: Recipe, backbone: nn.Module, image: Tensor, phis: Sequence[Phi], warp: Warp, unwarp: Warp
) -> Iterator[Tensor]:
    """For one pass, let the backbone warp its features; gives the image as the backbone is to see it."""
    insertion = insertion_of(recipe.backbone)
    visited = visited_places(recipe, backbone)
    warps = assign_places(recipe.augment_layer_id, visited, len(phis))
    unwarps = assign_places(recipe.unaugment_layer_id, visited, len(phis))
    resolution = recipe.deform_resolution

    if IMAGE_PLACE in warps:
        image = warp(phis[warps[IMAGE_PLACE]], image, resolution if insertion.resizes_image else None)

    def in_phis_dtype(transform: Warp, phi: Phi, features: Tensor) -> Tensor:
        return transform(phi, features.to(phi.x.dtype), resolution).to(features.dtype)

    def warped(phi: Phi) -> Callable[[Tensor], Tensor]:
        return lambda features: on_map(recipe.backbone, backbone, features, lambda m: in_phis_dtype(warp, phi, m))

    def unwarped(phi: Phi) -> Callable[[Tensor], Tensor]:
        return lambda features: on_map(recipe.backbone, backbone, features, lambda m: in_phis_dtype(unwarp, phi, m))

    stages = stages_of(recipe.backbone, backbone)
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
