"""Checkpoints of self-supervised training: which of their weights are the backbone's, under `LateClassToken`'s keys.

Known are the layouts of MoCo v3, DINO and Barlow Twins, and those in which the published code of SER
(arXiv 2603.06693) stores the three, and its linear evaluation. SER's transformer names its parts as timm's does, but
has no row in `pos_embed` for a class token that joins late.
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe
from dec_export.reference.backbones.late_class_token import sincos2d
from dec_export.reference.weights.files import Weights, find_state_dict, strip_prefixes

HEAD = ("head.weight", "head.bias")
# Keys of a model as dec-export publishes it, beside the backbone's own.
BEYOND_BACKBONE = ("DEM.", "decoder.")

# `equiv_layer` in SER's arguments when nothing is regularised: the class token is there from the first block.
_SER_BASELINE = 12
# Entries with weights that only the training needs.
_TRAINING_PARTS = ("student", "teacher", "projector_inv", "projector_equiv")
_BLOCK = re.compile(r"blocks\.([0-9]{1,4})\.")


@dataclass(frozen=True)
class Pretrained:
    """The part of a self-supervised checkpoint that is a backbone, or a backbone with its linear classifier.

    layout: name of the file's layout, for people.
    weights: under `LateClassToken`'s keys. As `recognise` finds them, `pos_embed` may be (1, patches, C); from `fit`
    it is (1, 1 + patches, C).
    insert_at: block before which the class token joins; None when the file does not say, from `fit` only when the
    recipe says that it joins late.
    dropped: how many tensors were left out, by the first part of their keys.
    of_ser: whether the published code of SER wrote the file, in a layout of its own.
    """

    layout: str
    weights: Weights
    insert_at: int | None
    dropped: Counter[str]
    of_ser: bool = False

    @property
    def dropped_in_words(self) -> str:
        """Such as "; dropped: momentum_encoder.* (152), head.* (8)"; empty when everything was used."""
        groups = ", ".join(f"{part}.* ({count})" for part, count in self.dropped.items())
        return f"; dropped: {groups}" if groups else ""


def recognise(content: Any, path: Path) -> Pretrained | None:
    """The backbone in a checkpoint's content; None when that is a whole DEC model under the published keys.

    Raises CheckpointError when the content holds no weights at all.
    """
    found = _from_teacher_and_student(content) or _from_linear_evaluation(content) or _from_one_model(content, path)
    if any(key.startswith(BEYOND_BACKBONE) for key in found.weights):
        return None
    unused = [key for key in found.weights if _only_training_needs(key)]
    return _without(replace(found, insert_at=_said_place(content)), unused)


def _part(content: Any, name: str) -> Weights:
    """The tensors under an entry of a training checkpoint; none when there is no such entry."""
    part = content.get(name) if isinstance(content, Mapping) else None
    return strip_prefixes(part) if isinstance(part, Mapping) else {}


def _from_teacher_and_student(content: Any) -> Pretrained | None:
    """DINO, which evaluates its teacher, with the backbone beside a head; or SER's MoCo v3, two plain backbones."""
    of_ser = _is_of_ser(content)
    program = " of SER" if of_ser else ""
    for name in ("teacher", "student"):
        state = _part(content, name)
        if any(key.startswith("backbone.") for key in state):
            found = _below("backbone.", state, f"DINO{program}, its {name}", _beside(content, name))
            return replace(found, of_ser=of_ser)
    student, layout = _part(content, "student"), f"MoCo v3{program}, its student"
    return Pretrained(layout, student, None, _beside(content, "student"), of_ser) if student else None


def _from_linear_evaluation(content: Any) -> Pretrained | None:
    """SER's: the backbone beside a classifier, which reads the class tokens of the last blocks."""
    encoder, classifier = _part(content, "encoder"), _part(content, "state_dict")
    if not encoder or set(classifier) != {"linear.weight", "linear.bias"}:
        return None
    head = {key: classifier[key.replace("head", "linear")] for key in HEAD}
    return Pretrained("linear evaluation of SER", {**encoder, **head}, None, Counter(), of_ser=True)


def _from_one_model(content: Any, path: Path) -> Pretrained:
    """MoCo v3 and Barlow Twins, whose model holds the backbone beside other parts; or nothing but a backbone."""
    state = strip_prefixes(find_state_dict(content, path))
    if any(key.startswith("base_encoder.") for key in state):
        return _below("base_encoder.", state, "MoCo v3")
    if any(key.startswith("backbone.") for key in state):
        return _below("backbone.", state, "Barlow Twins")
    if not _part(content, "projector_inv"):
        return Pretrained("a state dict", state, None, _beside(content))
    of_ser = _is_of_ser(content)
    return Pretrained(f"Barlow Twins{' of SER' if of_ser else ''}", state, None, _beside(content), of_ser)


def _beside(content: Any, used: str | None = None) -> Counter[str]:
    """How many tensors lie in each entry that only the training needs, but for the used one."""
    return +Counter({name: len(_part(content, name)) for name in _TRAINING_PARTS if name != used})


def _is_of_ser(content: Any) -> bool:
    return isinstance(content, Mapping) and ("loss_list_inv" in content or "equiv_layer" in _arguments(content))


def _below(prefix: str, state: Weights, layout: str, dropped: Counter[str] | None = None) -> Pretrained:
    """The weights under one prefix; the others count as dropped."""
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = Counter(key.split(".")[0] for key in state if not key.startswith(prefix))
    return Pretrained(layout, weights, None, others + (dropped or Counter()))


def _only_training_needs(key: str) -> bool:
    """Whether it belongs to SER's equivariance loss, or to a projection head, which has layers where a linear has not.

    `head` is also the name of a linear classifier, which stays.
    """
    return key.startswith("norm_equiv.") or (key.startswith("head.") and key not in HEAD)


def _without(found: Pretrained, keys: list[str]) -> Pretrained:
    left_out = frozenset(keys)
    weights = {key: value for key, value in found.weights.items() if key not in left_out}
    return replace(found, weights=weights, dropped=found.dropped + Counter(key.split(".")[0] for key in keys))


def _arguments(content: Any) -> Mapping[str, Any]:
    """The command line of the program that wrote the checkpoint; empty when there is none."""
    arguments = content.get("args") if isinstance(content, Mapping) else None
    found = vars(arguments) if isinstance(arguments, Namespace) else arguments
    return found if isinstance(found, Mapping) else {}


def _said_place(content: Any) -> int | None:
    layer = _arguments(content).get("equiv_layer")
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer <= _SER_BASELINE:
        return None
    return 0 if layer == _SER_BASELINE else layer


def fit(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> Pretrained:
    """The same with `pos_embed` of 1 + patches rows, and no classifier where the recipe's backbone has none.

    expected: the recipe's backbone as it is without the checkpoint. `pos_embed` of `found` must be plain numbers.
    Raises CheckpointError when the backbone is another one, or was trained with its class token elsewhere than the
    recipe has it. Shapes that nothing here asks for are not compared.
    """
    assert recipe.cls_insert_layer is not None
    _check_blocks(found, recipe, expected, path)
    _check_width(found, recipe, expected, path)
    _check_place(found, recipe, expected, path)
    _check_rows(found, recipe, expected, path)
    positions = found.weights["pos_embed"]
    lacks_row = _rows(found.weights) == _patches(expected)
    if lacks_row:  # SER adds no position to the class token
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if recipe.position_embedding == "sincos2d":
        _check_fixed_positions(positions, expected, path)
    # At the first block every usual transformer has it.
    place = 0 if recipe.cls_insert_layer == 0 else found.insert_at
    fitted = replace(found, weights={**found.weights, "pos_embed": positions}, insert_at=place)
    return _without(fitted, [key for key in HEAD if key in found.weights and key not in expected])


def _rows(weights: Weights) -> int:
    return weights["pos_embed"].shape[1]


def _patches(expected: Weights) -> int:
    return _rows(expected) - 1


def _check_blocks(found: Pretrained, recipe: BackboneRecipe, expected: Weights, path: Path) -> None:
    (wanted, blocks) = ({int(m[1]) for key in keys if (m := _BLOCK.match(key))} for keys in (expected, found.weights))
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
    """Block before which the class token joins, and how that is known; None when it is not."""
    if found.insert_at is not None:
        return found.insert_at, "as equiv_layer in its arguments says"
    if found.of_ser and _rows(found.weights) == _rows(expected):
        return 0, "its pos_embed has a row for it, as SER's has only there"
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


def _grid_side(rows: int) -> int | None:
    """The side of the square grid of patches that has so many rows, with or without one for the class token."""
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
    tolerance = _tolerance(positions.dtype, side)
    furthest = (rows - fixed).abs().max().item()
    if furthest <= tolerance:
        return
    if _near(rows, torch.cat([fixed[1:], fixed[:1]]), tolerance):
        raise CheckpointError(
            f"'{path}' has the class token's row of pos_embed last, expected first: it was written by something else "
            "than the program of the paper; move the row."
        )
    raise CheckpointError(
        f"'{path}' has a pos_embed up to {furthest:.2g} off the fixed embedding sincos2d, expected {tolerance:.2g} at "
        "most: set position_embedding to learned, or give another checkpoint."
    )


def _near(rows: Tensor, others: Tensor, tolerance: float) -> bool:
    return (rows - others).abs().max().item() <= tolerance


def _tolerance(dtype: torch.dtype, side: int) -> float:
    """How far a fixed embedding may be off when it was computed in float32 and stored in `dtype`.

    Its values are at most 1, and rounded by `dtype`; its angles, of up to `side`, are off by a few float32 roundings.
    """
    return torch.finfo(dtype).eps + 8 * side * torch.finfo(torch.float32).eps
