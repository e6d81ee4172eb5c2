"""Insertion of warps into timm backbones, through hooks: no forward pass of timm is copied.

A place is a number: -1 is the input image, i >= 0 the input (for unwarping: the output) of block or stage i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe import NEVER, Family, Recipe
from dec_export.reference.precision import entry_dtype
from dec_export.reference.warp import Phi, unwarp, warp

MapTransform = Callable[[Tensor], Tensor]
Warp = Callable[[Phi, Tensor, "tuple[int, int] | None"], Tensor]
IMAGE_PLACE = -1


@dataclass(frozen=True)
class Insertion:
    """How one family of backbones shows its features to the warp.

    stages: the modules whose inputs and outputs are the places i >= 0, in order.
    embedding: the module whose output is unwarped at place -1; None when the family never visits -1.
    on_map: applies a transform of (B, C, h, w) maps to features as the family lays them out.
    resizes_image: whether `deform_resolution` holds for the image at place -1 too.
    needs: attributes by which a timm model of the family is known.
    """

    stages: Callable[[Any], Sequence[nn.Module]]
    embedding: Callable[[Any], nn.Module] | None
    on_map: Callable[[Any, Tensor, MapTransform], Tensor]
    resizes_image: bool
    needs: tuple[str, ...]


def _on_tokens(backbone: Any, tokens: Tensor, transform: MapTransform) -> Tensor:
    """Tokens (B, T, C): prefix tokens stay aside, the rest is a map in row-major order."""
    prefix: int = backbone.num_prefix_tokens
    height, width = backbone.patch_embed.grid_size
    patches = tokens[:, prefix:].transpose(1, 2).reshape(-1, tokens.shape[2], height, width)
    warped = transform(patches).flatten(2).transpose(1, 2)
    return warped if prefix == 0 else torch.cat([tokens[:, :prefix], warped], dim=1)


def _on_channels_last(_: Any, features: Tensor, transform: MapTransform) -> Tensor:
    """Features (B, h, w, C)."""
    return transform(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


INSERTIONS: dict[Family, Insertion] = {
    "vit": Insertion(
        lambda m: list(m.blocks),
        lambda m: m.norm_pre,
        _on_tokens,
        resizes_image=False,
        needs=("blocks", "norm_pre", "num_prefix_tokens", "patch_embed"),
    ),
    "beit": Insertion(
        lambda m: list(m.blocks),
        None,
        _on_tokens,
        resizes_image=False,
        needs=("blocks", "rel_pos_bias", "num_prefix_tokens", "patch_embed"),
    ),
    "swin": Insertion(
        lambda m: list(m.layers),
        lambda m: m.patch_embed,
        _on_channels_last,
        resizes_image=True,
        needs=("layers", "patch_embed"),
    ),
}


def check_family(family: Family, backbone: nn.Module) -> None:
    """Raise RecipeError unless the backbone is built as models of the family are."""
    missing = [name for name in INSERTIONS[family].needs if not hasattr(backbone, name)]
    if missing:
        raise RecipeError(
            f"timm's {type(backbone).__name__} is not of the family '{family}' (it has no {missing[0]}): "
            f"choose a model of it, or another family of {', '.join(INSERTIONS)}."
        )


def assign_places(places: Sequence[int], visited: Sequence[int], count: int) -> dict[int, int]:
    """Which of `count` solved phis each place uses: the n-th visited place of `places` takes phi n.

    `visited` are the places that a backbone passes, in order; further places than phis are left out.
    """
    used = [place for place in visited if place in places]
    return {place: n for n, place in enumerate(used[:count])}


def visited_places(recipe: Recipe, backbone: nn.Module) -> list[int]:
    """The places that this backbone passes, in order."""
    insertion = INSERTIONS[recipe.backbone.family]
    blocks = list(range(len(insertion.stages(backbone))))
    return blocks if insertion.embedding is None else [IMAGE_PLACE, *blocks]


def check_places(recipe: Recipe, backbone: nn.Module) -> None:
    """Raise RecipeError when the recipe asks for warps, but the backbone passes none of its places."""
    visited = visited_places(recipe, backbone)
    wanted = {*recipe.augment_layer_id, *recipe.unaugment_layer_id} - {NEVER}
    if wanted and not wanted & set(visited):
        raise RecipeError(
            f"recipe '{recipe.name}': none of the places {sorted(wanted)} exists in {recipe.backbone.timm}, "
            f"which passes {visited[0]} to {visited[-1]}: the canonicalizer would have no effect."
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
    insertion = INSERTIONS[recipe.backbone.family]
    visited = visited_places(recipe, backbone)
    warps = assign_places(recipe.augment_layer_id, visited, len(phis))
    unwarps = assign_places(recipe.unaugment_layer_id, visited, len(phis))
    resolution = recipe.deform_resolution

    if IMAGE_PLACE in warps:
        image = warp(phis[warps[IMAGE_PLACE]], image, resolution if insertion.resizes_image else None)

    def in_phis_dtype(transform: Warp, phi: Phi, features: Tensor) -> Tensor:
        return transform(phi, features.to(phi.x.dtype), resolution).to(features.dtype)

    def warped(phi: Phi) -> Callable[[Tensor], Tensor]:
        return lambda features: insertion.on_map(backbone, features, lambda m: in_phis_dtype(warp, phi, m))

    def unwarped(phi: Phi) -> Callable[[Tensor], Tensor]:
        return lambda features: insertion.on_map(backbone, features, lambda m: in_phis_dtype(unwarp, phi, m))

    stages = insertion.stages(backbone)
    before = {stages[i]: warped(phis[n]) for i, n in warps.items() if i >= 0}
    after = {stages[i]: unwarped(phis[n]) for i, n in unwarps.items() if i >= 0}
    if IMAGE_PLACE in unwarps and insertion.embedding is not None:
        after[insertion.embedding(backbone)] = unwarped(phis[unwarps[IMAGE_PLACE]])
    with _hooked(before, after):
        output: Tensor = backbone(image.to(entry_dtype(backbone)))
    return output.to(image.dtype)


@contextmanager
def _hooked(before: dict[nn.Module, MapTransform], after: dict[nn.Module, MapTransform]) -> Iterator[None]:
    """Transform the first input of the modules in `before` and the output of those in `after`, for one pass."""
    with ExitStack() as handles:
        for module, transform in before.items():
            handles.enter_context(
                module.register_forward_pre_hook(lambda _, args, t=transform: (t(args[0]), *args[1:]))
            )
        for module, transform in after.items():
            handles.enter_context(module.register_forward_hook(lambda _, __, output, t=transform: t(output)))
        yield
