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
from torch.utils.hooks import RemovableHandle

from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.backbones.maps import MapTransform, head_map, on_map
from dec_export.reference.backbones.operations import Operations, Warp, reference_operations
from dec_export.reference.backbones.stages import (
    IMAGE_PLACE,
    assign_places,
    embedding_of,
    ends_of,
    insertion_of,
    stages_of,
    visited_places,
)
from dec_export.reference.precision import entry_dtype
from dec_export.reference.warp import Phi


def run_with_warps(
    recipe: Recipe,
    backbone: nn.Module,
    image: Tensor,
    phis: Sequence[Phi],
    operations: Operations | None = None,
) -> Tensor:
    """Return the backbone's output for images (B, 3, H, W), with its features warped as the recipe says.

    Features are warped, and the output is returned, in the image's dtype, whatever the dtype of the backbone is.
    `operations` are those of the reference unless others are given.
    """
    with _warps_inserted(recipe, backbone, image, phis, operations) as warped:
        output: Tensor = backbone(warped)
    return output.to(image.dtype)


def feature_maps(
    recipe: Recipe,
    backbone: Any,  # timm has no common type of its models, and nn.Module has no `forward_features`
    image: Tensor,
    phis: Sequence[Phi],
    operations: Operations | None = None,
) -> list[Tensor]:
    """Return the feature maps (B, C, h, w) that the recipe's head reads, in the backbone's dtype.

    These are the features at the head's taps, or the last features if the head has none. `run_with_warps` explains the
    arguments.
    """
    assert recipe.head is not None
    read = stage_inputs if recipe.head.tapped == "input" else stage_outputs
    with (
        read(recipe.backbone, backbone, recipe.head.taps) as tapped,
        _warps_inserted(recipe, backbone, image, phis, operations) as warped,
    ):
        last = backbone.forward_features(warped)
    features = [tapped[place] for place in recipe.head.taps] or [last]
    return [head_map(recipe, backbone, values) for values in features]


@contextmanager
def stage_inputs(recipe: BackboneRecipe, backbone: nn.Module, places: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect, inside the `with` block, the inputs of the blocks or stages at these places, after their warps."""

    def watch(stage: nn.Module, keep: _Keep) -> RemovableHandle:
        return stage.register_forward_pre_hook(lambda _, args: keep(args[0]))

    stages = stages_of(recipe, backbone)
    with _watched(backbone, {place: stages[place] for place in places}, watch) as found:
        yield found


@contextmanager
def stage_outputs(recipe: BackboneRecipe, backbone: nn.Module, places: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect, inside the `with` block, the outputs of the blocks or stages at these places, after their warps.

    The output at place -1 is that of the embedding.
    """

    def watch(end: nn.Module, keep: _Keep) -> RemovableHandle:
        return end.register_forward_hook(lambda _, __, output: keep(output))

    ends, embedding = ends_of(recipe, backbone), embedding_of(recipe, backbone)
    modules = {place: ends[place] for place in places if place != IMAGE_PLACE}
    if IMAGE_PLACE in places and embedding is not None:
        modules[IMAGE_PLACE] = embedding
    with _watched(backbone, modules, watch) as found:
        yield found


_Keep = Callable[[object], None]
_Watch = Callable[[nn.Module, _Keep], RemovableHandle]


@contextmanager
def _watched(backbone: nn.Module, modules: dict[int, nn.Module], watch: _Watch) -> Iterator[dict[int, Tensor]]:
    """Collect the tensor that `watch` observes at the module of each place.

    Nothing is collected for a module that does not run or that passes on more than one tensor.
    """
    found: dict[int, Tensor] = {}

    def keep_at(place: int) -> _Keep:
        return lambda value: found.update({place: value} if isinstance(value, Tensor) else {})

    with _lock_of(backbone), ExitStack() as handles:
        for place, module in modules.items():
            handles.enter_context(watch(module, keep_at(place)))
        yield found


@contextmanager
def _warps_inserted(
    recipe: Recipe, backbone: nn.Module, image: Tensor, phis: Sequence[Phi], operations: Operations | None
) -> Iterator[Tensor]:
    """Let the backbone warp its features for one pass, and give the image that the backbone must be called with."""
    insertion = insertion_of(recipe.backbone)
    visited = visited_places(recipe, backbone)
    warps = assign_places(recipe.augment_layer_id, visited, len(phis))
    unwarps = assign_places(recipe.unaugment_layer_id, visited, len(phis))
    resolution, operations = recipe.deform_resolution, operations or reference_operations(recipe)
    warp, unwarp = operations.warp, operations.unwarp

    image = operations.prepare(image)
    if IMAGE_PLACE in warps:
        image = warp(phis[warps[IMAGE_PLACE]], image, resolution if insertion.resizes_image else None)

    def transformed(transform: Warp, phi: Phi, at: tuple[int, int] | None = resolution) -> MapTransform:
        def in_phis_dtype(features: Tensor) -> Tensor:
            return transform(phi, features.to(phi.x.dtype), at).to(features.dtype)

        return lambda features: on_map(recipe.backbone, backbone, features, in_phis_dtype)

    stages, ends = stages_of(recipe.backbone, backbone), ends_of(recipe.backbone, backbone)
    before = {stages[i]: transformed(warp, phis[n]) for i, n in warps.items() if i >= 0}
    after = {ends[i]: transformed(unwarp, phis[n]) for i, n in unwarps.items() if i >= 0}
    embedding = embedding_of(recipe.backbone, backbone)
    if IMAGE_PLACE in unwarps and embedding is not None:
        at = resolution if insertion.resizes_embedding else None
        after[embedding] = transformed(unwarp, phis[unwarps[IMAGE_PLACE]], at)
    with _lock_of(backbone), _hooked(before, after):
        yield image.to(entry_dtype(backbone))


# During a pass, hooks are registered on the backbone's own modules. A second thread that ran these modules at that time
# would have its features warped by the first thread's phis. Therefore only one thread at a time runs a backbone. The
# lock is reentrant, because one pass may open several of these contexts.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def _lock_of(backbone: nn.Module) -> threading.RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(backbone, threading.RLock())


@contextmanager
def _hooked(before: dict[nn.Module, MapTransform], after: dict[nn.Module, MapTransform]) -> Iterator[None]:
    """Transform the first input of the modules in `before` and the output of those in `after`, for one pass.

    These hooks run before all hooks that are already registered.
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
