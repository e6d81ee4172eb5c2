"""The several files in which the published dense and digits program stores one model.

`NAME.pth` holds the backbone with its classifier or head; `NAME_surrogate.pth` the canonicalizers, whose keys start
with `module_list.`; `NAME_phi_x.pth` and `NAME_phi_y.pth` lists of start values, of which only the shapes matter.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.reference.weights.files import Weights, read_content
from dec_export.reference.weights.layout import Checkpoint, Pretrained

_SURROGATE, _STARTS = "_surrogate", ("_phi_x", "_phi_y")
_CANONICALIZERS = "module_list."
_ENERGY = re.compile(r"module_list\.\d{1,4}\.\d{1,4}\.conv\.")
# The optimisation that a published configuration or checkpoint of Optim asks for; docs/semantics.md, section 8.
OPTIM_REASON = (
    "needs gradients at inference, which no exported graph has: use it as the baseline of `dec-export bench`, or train "
    "with deep_equlibrium_mode"
)


def check_is_backbone(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError, which says what the file is, for a file of canonicalizers or of start values."""
    path, content = checkpoint.path, checkpoint.content
    if content is None or (isinstance(content, (list, tuple)) and all(isinstance(v, Tensor) for v in content)):
        found = "nothing" if content is None else f"a list of {len(content)} start values of phi"
        raise CheckpointError(
            f"'{path}' holds {found}, as the published program's '..._phi_x.pth' and '..._phi_y.pth' do, and no "
            f"weights: give {_backbone_file(path, _STARTS)}."
        )
    if isinstance(content, dict) and content and all(str(key).startswith(_CANONICALIZERS) for key in content):
        raise CheckpointError(
            f"'{path}' holds only canonicalizers (its keys start with 'module_list.') and no backbone: give "
            f"{_backbone_file(path, (_SURROGATE,))} as --checkpoint, and this file as --canonicalizer-checkpoint."
        )


def _backbone_file(path: Path, endings: tuple[str, ...]) -> str:
    for ending in endings:
        if path.stem.endswith(ending):
            return f"the backbone's file '{path.stem.removesuffix(ending)}{path.suffix}'"
    return "the backbone's file"


def find_canonicalizers(path: Path) -> Path | None:
    """Return the file of canonicalizers beside the backbone's file `path`; None when there is none."""
    beside = path.with_name(f"{path.stem}{_SURROGATE}{path.suffix}")
    return beside if beside.is_file() else None


def read_canonicalizers(path: Path) -> Weights:
    """Return the canonicalizers' weights under the keys `DEM.module_list...`.

    Raises CheckpointError when the file cannot be read, holds something else, or holds the energies of Optim.
    """
    checkpoint = Checkpoint(read_content(path), path)
    if not isinstance(checkpoint.content, dict):
        check_is_backbone(checkpoint)
    weights = checkpoint.state
    if any(_ENERGY.match(key) for key in weights):
        raise CheckpointError(f"'{path}' holds the energies of Optim, which {OPTIM_REASON}.")
    others = [key for key in weights if not key.startswith(_CANONICALIZERS)]
    if others:
        raise CheckpointError(
            f"'{path}' holds '{others[0]}', expected only canonicalizers, with keys such as "
            "'module_list.0.0.conv1.weight': give the file whose name ends in '_surrogate.pth'."
        )
    return {f"DEM.{key}": value for key, value in weights.items()}


def check_start_values(recipe: Recipe, path: Path) -> None:
    """Raise CheckpointError unless the lists of start values beside the backbone's file have the recipe's shapes.

    Nothing is checked where there are no such files, or where the recipe has no deep equilibrium canonicalizers.
    """
    if recipe.deep_equilibrium is None:
        return
    for ending in _STARTS:
        beside = path.with_name(f"{path.stem}{ending}{path.suffix}")
        if beside.is_file():
            _check_starts(recipe, beside)


def _check_starts(recipe: Recipe, path: Path) -> None:
    content = read_content(path)
    starts = content if isinstance(content, (list, tuple)) else []
    shapes = [tuple(start.shape) for start in starts if isinstance(start, Tensor)]
    found = [f"{'x'.join(map(str, shape))}" for shape in shapes]
    expected = [(1, size, size - 1) for size in recipe.coarse_resolutions]
    if shapes != expected:
        raise CheckpointError(
            f"'{path}', beside the checkpoint, belongs to a model with start values of {', '.join(found) or 'no phi'}, "
            f"expected {', '.join('x'.join(map(str, shape)) for shape in expected)} by coarse_resolution of recipe "
            f"'{recipe.name}': give the files of one run, and the recipe of its configuration."
        )


def fit_published(recipe: Recipe, found: Pretrained, expected: Weights, path: Path) -> Pretrained:
    """Return a transformers checkpoint as the recipe's backbone reads it.

    Positions of DINOv2 for another image size are interpolated once, as transformers does at every pass.
    Raises CheckpointError when the recipe has timm's epsilon where transformers has another.
    """
    spec = recipe.backbone
    if any(key.endswith("norm1.weight") for key in found.weights) and _needs_epsilon(found) and not spec.layer_norm_eps:
        raise CheckpointError(
            f"'{path}' was written by a program on the library transformers, whose layer norms have the epsilon 1e-12, "
            f"and recipe '{recipe.name}' leaves timm's: import the recipe from config_1.yaml, or set "
            "backbone.layer_norm_eps to 1.0e-12."
        )
    positions, wanted = found.weights.get("pos_embed"), expected.get("pos_embed")
    if positions is None or wanted is None or positions.shape == wanted.shape or not _is_dinov2(found):
        return found
    return replace(found, weights={**found.weights, "pos_embed": _interpolated(positions, wanted)})


def _is_dinov2(found: Pretrained) -> bool:
    return "blocks.0.ls1.gamma" in found.weights


def _needs_epsilon(found: Pretrained) -> bool:
    """Return whether the model is a ViT, a DeiT or a BEiT; DINOv2 and Swin have timm's epsilons."""
    return "blocks.0.norm1.weight" in found.weights and not _is_dinov2(found)


def _interpolated(positions: Tensor, wanted: Tensor) -> Tensor:
    """Return the positions (1, 1 + n, C) of DINOv2 for the grid of `wanted`; unchanged if either is not square.

    transformers 4.44 adds 0.1 to the target's side and gives the ratio, not the size, to a bicubic interpolation in
    float32 without antialiasing; the ratio decides where the positions are sampled.
    """
    side, target = (math.isqrt(max(p.shape[1] - 1, 0)) if p.ndim == 3 else 0 for p in (positions, wanted))
    if min(side, target) < 1 or side**2 != positions.shape[1] - 1 or target**2 != wanted.shape[1] - 1:
        return positions
    grid = positions[:, 1:].to(torch.float32).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (target + 0.1) / math.sqrt(side**2)
    resized = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    patches = resized.to(positions.dtype).permute(0, 2, 3, 1).reshape(1, target**2, -1)
    return torch.cat([positions[:, :1], patches], dim=1)
