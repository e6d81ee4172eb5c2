"""Checks that a self-supervised backbone is that of the recipe, and fits its position embedding to `LateClassToken`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe
from dec_export.reference.backbones.late_class_token import sincos2d
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import HEAD, Pretrained
from dec_export.reference.weights.layouts.timm import BLOCK


def fit_transformer(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> Pretrained:
    """Return a copy with `pos_embed` (1, 1 + patches, C), and no classifier if the recipe's backbone has none.

    found: the checkpoint's backbone, whose `pos_embed` must be plain numbers.
    expected: the weights of the recipe's backbone before the checkpoint is loaded.
    Raises CheckpointError when the architectures differ, or when the backbone was trained with its class token at
    another block than the recipe says. Other shapes than those of the tokens are not compared here.
    """
    assert recipe.cls_insert_layer is not None
    _check_blocks(found, recipe, expected, path)
    _check_width(found, recipe, expected, path)
    _check_place(found, recipe, expected, path)
    _check_rows(found, recipe, expected, path)
    _check_tap_norm(found, recipe, path)
    positions = found.weights["pos_embed"]
    lacks_row = _rows(found.weights) == _patches(expected)
    if lacks_row:  # SER adds no position to the class token
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if recipe.position_embedding == "sincos2d":
        _check_fixed_positions(positions, expected, path)
    # The class token of every usual transformer joins before the first block.
    place = 0 if recipe.cls_insert_layer == 0 else found.insert_at
    fitted = replace(found, weights={**found.weights, "pos_embed": positions}, insert_at=place)
    return fitted.without([key for key in HEAD if key in found.weights and key not in expected])


def _rows(weights: Weights) -> int:
    return weights["pos_embed"].shape[1]


def _patches(expected: Weights) -> int:
    return _rows(expected) - 1


def _check_blocks(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> None:
    (wanted, blocks) = ({int(m[1]) for key in keys if (m := BLOCK.match(key))} for keys in (expected, found.weights))
    if not blocks:
        names = ", ".join(list(found.weights)[:3]) or "no weights"
        raise CheckpointError(
            f"'{path}' ({found.layout}) holds no vision transformer: expected keys such as "
            f"'blocks.0.attn.qkv.weight', found {names}; give the checkpoint of the backbone."
        )
    if "cls_token" not in found.weights or "pos_embed" not in found.weights:
        lacks = "cls_token" if "cls_token" not in found.weights else "pos_embed"
        raise CheckpointError(
            f"'{path}' ({found.layout}) has no {lacks}, expected a transformer with a class token and positions: give "
            "the checkpoint of one, or leave cls_insert_layer out of the recipe."
        )
    if blocks != wanted:
        missing = sorted(wanted - blocks)
        lacks = f", without block {', '.join(map(str, missing))}" if missing else ""
        raise CheckpointError(
            f"'{path}' ({found.layout}) has {len(blocks)} blocks{lacks}, expected the {len(wanted)} of {recipe.timm}: "
            "name the timm model that was trained, or set its depth in timm_args."
        )


def _check_width(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> None:
    width = expected["cls_token"].shape[-1]
    for key in ("cls_token", "pos_embed"):
        shape = found.weights[key].shape
        if len(shape) != 3 or shape[0] != 1:
            sizes = "x".join(map(str, shape)) or "a scalar"
            raise CheckpointError(
                f"'{path}' ({found.layout}) has a {key} of {sizes}, expected 1xTOKENSx{width}: give another checkpoint."
            )
        if shape[-1] != width:
            raise CheckpointError(
                f"'{path}' ({found.layout}) has tokens of width {shape[-1]}, expected the {width} of {recipe.timm}: "
                "name the timm model that was trained, or set its embed_dim in timm_args."
            )


def _check_place(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> None:
    place, why = _known_place(found, expected)
    if place in (None, recipe.cls_insert_layer):
        return
    raise CheckpointError(
        f"'{path}' ({found.layout}) was trained with its class token joining {_before(place or 0)} ({why}), expected "
        f"{_before(recipe.cls_insert_layer or 0)}: set cls_insert_layer to {place}, or give another checkpoint."
    )


def _known_place(found: Pretrained, expected: Weights) -> tuple[int | None, str]:
    """Return the block before which the class token joins, or None, and how the block is known."""
    if found.insert_at is not None:
        return found.insert_at, "as equiv_layer in its arguments says"
    if found.of_ser and _rows(found.weights) == _rows(expected):
        return 0, "its pos_embed has a row for it, as that of SER has only there"
    return None, ""


def _before(place: int) -> str:
    return f"before block {place}" if place else "before the first block"


def _check_rows(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> None:
    rows, patches = _rows(found.weights), _patches(expected)
    if rows == 1 + patches or (rows == patches and recipe.cls_insert_layer):
        return
    if rows == patches:
        raise CheckpointError(
            f"'{path}' ({found.layout}) has a pos_embed of {rows} rows, one for each patch, expected {1 + patches} for "
            "a class token at the first block: set cls_insert_layer to the block that its class token joins before."
        )
    side = math.isqrt(patches)
    raise CheckpointError(
        f"'{path}' ({found.layout}) has a pos_embed of {rows} rows, {_as_grid(rows, patches)}, expected {1 + patches} "
        f"for {_grid(side)} and one class token (or {patches} where it joins late): {_advice(rows)}."
    )


def _check_tap_norm(found: Pretrained, recipe: BackboneRecipe, path: Path) -> None:
    if recipe.tap_norm and "norm_equiv.weight" not in found.weights:
        raise CheckpointError(
            f"'{path}' ({found.layout}) has no norm_equiv, expected the norm of SER's map, because the recipe sets "
            "tap_norm: give a checkpoint that was trained with it, or set tap_norm to false."
        )


def _grid_side(rows: int) -> int | None:
    """Return the side of the square grid of patches with this number of rows.

    One of the rows may be that of the class token. The side is None when no grid fits.
    """
    return next((math.isqrt(n) for n in (rows - 1, rows) if n > 0 and math.isqrt(n) ** 2 == n), None)


def _grid(side: int) -> str:
    return f"a grid of {side} x {side} patches"


def _as_grid(rows: int, patches: int) -> str:
    side = _grid_side(rows)
    if side is not None:
        return f"as for {_grid(side)}"
    if rows > patches:
        return f"as for {rows - patches} tokens before {_grid(math.isqrt(patches))}"
    return "as for no square grid of patches"


def _advice(rows: int) -> str:
    if _grid_side(rows) is not None:
        return "set image_size, and patch_size in timm_args, to those that it was trained with"
    return "give the checkpoint of a transformer with one class token and no others before its patches"


def _check_fixed_positions(positions: Tensor, expected: Weights, path: Path) -> None:
    """Compare positions (1, 1 + patches, C) with those that the recipe says are fixed."""
    side = math.isqrt(_patches(expected))
    fixed = sincos2d((side, side), positions.shape[-1])[0]
    rows = positions[0].to(torch.float64)
    tolerance = position_tolerance(positions.dtype, side)
    furthest = (rows - fixed).abs().max().item()
    if furthest <= tolerance:
        return
    if _near(rows, torch.cat([fixed[1:], fixed[:1]]), tolerance):
        raise CheckpointError(
            f"'{path}' has the class token's row of pos_embed last, expected first: it was not written by the program "
            "of the paper; move the row."
        )
    raise CheckpointError(
        f"'{path}' has a pos_embed up to {furthest:.2g} off the fixed embedding sincos2d, expected {tolerance:.2g} at "
        "most: set position_embedding to learned, or give another checkpoint."
    )


def _near(rows: Tensor, others: Tensor, tolerance: float) -> bool:
    return (rows - others).abs().max().item() <= tolerance


def position_tolerance(dtype: torch.dtype, side: int) -> float:
    """Return the largest error of a fixed embedding that was computed in float32 and stored in `dtype`.

    Its values are at most 1 and are rounded to `dtype`. Its angles are at most `side` and have errors of a few float32
    roundings.
    """
    return torch.finfo(dtype).eps + 8 * side * torch.finfo(torch.float32).eps
