"""Snapshots of "Tunable soft equivariance" (arXiv 2603.26657): `config.json` beside `model.safetensors`.

The published model is one of the library transformers, whose patch embedding and positions pass fixed projections at
every pass. The projections are weights of the file, so they are folded into what they act on, in float64:

    W'[o, c] = F W[o, c]     F is (k^2, k^2), and W[o, c] one kernel of k x k pixels, in row-major order
    p' = G p                 G is (n, n), and p the n patches' positions (n, channels), or coordinates (n, 2)

Source: section 4 of the paper; the key layout of the published models. The published program writes p' over p at
every pass. Because G is a projection, the second pass changes only roundings, and one application is what it computes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.relatives import CONFIG_NAME, SoftEquivariantConfig, read_config
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained
from dec_export.reference.weights.layouts.transformers import TRANSFORMERS

# The key of the rows and columns of DINOv3's patches, (patches, 2), from which its table of sines and cosines is made.
COORDINATES = "rope.coordinates"
_MATRIX_OF_WEIGHTS, _MATRIX_OF_DATA = "filter_w_T", "filter_x"
# A projection P in float32 has P P = P to 1e-5 in the published models; a matrix of another kind is far from it.
_PROJECTION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Keys:
    """The keys of a published class: its backbone's prefix, its patch embedding, and its projections of positions."""

    prefix: str
    patches: str
    positions: str


_KEYS = {
    "filtered_vit_seg": _Keys("vit.", "vit.embeddings.patch_embeddings.projection.", "vit.embeddings.filter_pos."),
    "filtered_dino2_seg": _Keys(
        "dinov2.", "dinov2.embeddings.patch_embeddings.projection.", "dinov2.embeddings.filter_pos."
    ),
    "filtered_dinov3_seg": _Keys(
        "backbone.", "backbone.embeddings.patch_embeddings.", "backbone.rope_embeddings.filter_coords."
    ),
}
_DINOV3_BLOCK = r"backbone\.layer\.(\d{1,4})\."
# Each key of DINOv3 in transformers and its key in timm.
_DINOV3_RULES = [
    (re.compile(pattern), name)
    for pattern, name in {
        r"backbone\.embeddings\.cls_token": "cls_token",
        r"backbone\.embeddings\.register_tokens": "reg_token",
        r"backbone\.embeddings\.patch_embeddings\.(weight|bias)": r"patch_embed.proj.\1",
        _DINOV3_BLOCK + r"norm([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
        _DINOV3_BLOCK + r"attention\.([qv])_proj\.bias": r"blocks.\1.attn.\2_bias",
        _DINOV3_BLOCK + r"attention\.o_proj\.(weight|bias)": r"blocks.\1.attn.proj.\2",
        _DINOV3_BLOCK + r"layer_scale([12])\.lambda1": r"blocks.\1.gamma_\2",
        _DINOV3_BLOCK + r"mlp\.up_proj\.(weight|bias)": r"blocks.\1.mlp.fc1.\2",
        _DINOV3_BLOCK + r"mlp\.down_proj\.(weight|bias)": r"blocks.\1.mlp.fc2.\2",
        r"backbone\.norm\.(weight|bias)": r"norm.\1",
        r"decoder\.conv1\.(weight|bias)": r"decoder.conv1.\1",
    }.items()
]
_QUERY_KEY_VALUE = re.compile(_DINOV3_BLOCK + r"attention\.([qkv])_proj\.weight")
_MASK_TOKEN = "backbone.embeddings.mask_token"  # noqa: S105 - the name of a weight


def config_beside(path: Path) -> SoftEquivariantConfig:
    """Return the configuration beside a checkpoint; raise CheckpointError when there is none."""
    beside = path.with_name(CONFIG_NAME)
    if not beside.is_file():
        raise CheckpointError(
            f"'{path}' holds a soft equivariant model, and no {CONFIG_NAME} lies beside it to say what its projections "
            "are applied to: give the whole folder of the snapshot."
        )
    return read_config(beside)


def _recognise(checkpoint: Checkpoint) -> bool:
    return any(key.endswith((f".{_MATRIX_OF_WEIGHTS}", f".{_MATRIX_OF_DATA}")) for key in checkpoint.state)


def _read(checkpoint: Checkpoint) -> Pretrained:
    """Return the model with its projections folded in.

    Positions are those of the file's own grid; DINOv3 has `COORDINATES` in their place.
    Raises CheckpointError without a `config.json` beside the file, or when a projection does not fit.
    """
    path, config = checkpoint.path, config_beside(checkpoint.path)
    keys = _KEYS[config.model_arch]
    weights = {_with_decoder(key): value for key, value in checkpoint.state.items()}
    missing = [key for key in _needed(config, keys) if key not in weights]
    if missing:
        raise CheckpointError(
            f"'{path}' has no '{missing[0]}', which a model of {config.model_arch} has: give the {CONFIG_NAME} and the "
            "weights of one snapshot."
        )
    patches, positions = (_matrices(prefix, weights) for prefix in (f"{keys.patches}filter.", keys.positions))
    if config.soft_thresholding < 1:
        key = f"{keys.patches}weight"
        weights[key] = fold_kernels(weights[key], _projection(patches, _MATRIX_OF_WEIGHTS, path), key, path)
    projection = _projection(positions, _MATRIX_OF_DATA, path) if config.soft_thresholding_pos < 1 else None
    if config.model_arch == "filtered_dinov3_seg":
        coordinates = _coordinates(next(reversed(positions.values())).shape[0], path)
        weights[COORDINATES] = coordinates if projection is None else projection @ coordinates
        return _dinov3(weights, f"{keys.positions}{_MATRIX_OF_DATA}")
    if projection is not None:
        key = f"{keys.prefix}embeddings.position_embeddings"
        weights[key] = fold_positions(weights[key], projection, key, path)
    return _transformer(keys.prefix, weights, path)


def _needed(config: SoftEquivariantConfig, keys: _Keys) -> list[str]:
    matrices = (_MATRIX_OF_WEIGHTS, _MATRIX_OF_DATA)
    positions = [] if "dinov3" in config.model_arch else [f"{keys.prefix}embeddings.position_embeddings"]
    return [
        f"{keys.patches}weight",
        *positions,
        *(f"{keys.patches}filter.{name}" for name in matrices),
        *(f"{keys.positions}{name}" for name in matrices),
    ]


def _with_decoder(key: str) -> str:
    """Return a key with the name that a linear head has in dec-export."""
    return f"decoder.conv1.{key.removeprefix('classifier.')}" if key.startswith("classifier.") else key


def _matrices(prefix: str, weights: Weights) -> Weights:
    """Remove the two matrices of a projection from the weights, and return them by their whole keys."""
    return {prefix + name: weights.pop(prefix + name) for name in (_MATRIX_OF_WEIGHTS, _MATRIX_OF_DATA)}


def _projection(matrices: Weights, name: str, path: Path) -> Tensor:
    """Return one matrix of a projection in float64; raise CheckpointError unless it is a projection."""
    key, matrix = next((key, value) for key, value in matrices.items() if key.endswith(name))
    plain = matrix.layout is torch.strided and matrix.is_floating_point() and matrix.device.type == "cpu"
    if not plain or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise CheckpointError(
            f"'{path}' holds '{key}' as {_shape(matrix)} of {matrix.dtype}, expected a square matrix of plain numbers: "
            "give a published snapshot."
        )
    matrix = matrix.double()
    # Products with a few vectors show a projection as well as the whole matrix does, and cost less.
    steps = torch.arange(1, 5, dtype=torch.float64)
    once = matrix @ torch.cos(torch.arange(matrix.shape[0], dtype=torch.float64)[:, None] * steps)
    if not (matrix @ once - once).norm() <= _PROJECTION_TOLERANCE * once.norm():
        raise CheckpointError(
            f"'{path}' holds '{key}', which is no projection (applied twice, it differs from itself): give a published "
            "snapshot, whose hard_mask is true."
        )
    return matrix


def fold_kernels(kernels: Tensor, projection: Tensor, key: str, path: Path) -> Tensor:
    """Return the convolution kernels (out, in, k, k), each multiplied by a projection (k^2, k^2), in float64.

    Raises CheckpointError, which names the kernels by `key` and the file by `path`, when the sizes do not fit.
    """
    if kernels.ndim != 4 or kernels.shape[2] * kernels.shape[3] != projection.shape[0]:
        raise CheckpointError(_no_fit(path, key, kernels, projection))
    return (kernels.double().flatten(2) @ projection.T).reshape(kernels.shape)


def fold_positions(positions: Tensor, projection: Tensor, key: str, path: Path) -> Tensor:
    """Return positions (1, 1 + n, channels), of which those of the patches are multiplied by (n, n), in float64.

    Raises CheckpointError, which names the positions by `key` and the file by `path`, when the sizes do not fit.
    """
    if positions.ndim != 3 or positions.shape[1] != projection.shape[0] + 1:
        raise CheckpointError(_no_fit(path, key, positions, projection))
    positions = positions.double()
    return torch.cat([positions[:, :1], projection @ positions[:, 1:]], dim=1)


def _no_fit(path: Path, key: str, found: Tensor, projection: Tensor) -> str:
    return (
        f"'{path}' holds '{key}' as {_shape(found)} and its projection as {_shape(projection)}, which do not fit each "
        "other: give the weights of one snapshot."
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _coordinates(count: int, path: Path) -> Tensor:
    """Return the rows and columns of the patches of a square grid, from -1 to 1, (count, 2) float64."""
    side = math.isqrt(count)
    if side < 1 or side**2 != count:
        raise CheckpointError(f"'{path}' has positions of {count} patches, expected a square grid of them.")
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
    return torch.cartesian_prod(centres, centres)


def _transformer(prefix: str, weights: Weights, path: Path) -> Pretrained:
    """Return a ViT or a DINOv2, which the layout of the library transformers translates."""
    own = {f"model.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: key for key in weights}
    renamed = {key: weights[name] for key, name in own.items()}
    found = TRANSFORMERS.read(Checkpoint(renamed, path))
    names = {key: _published(own.get(name, name)) for key, name in found.names.items()}
    return replace(found, layout=_LAYOUT, names=names)


def _dinov3(weights: Weights, projection: str) -> Pretrained:
    """Return a DINOv3 under timm's keys; a key that no rule knows stays, so that the comparison names it."""
    found, names, attention = Weights(), {COORDINATES: projection}, dict[str, Weights]()
    dropped = Counter({"embeddings.mask_token": 1} if weights.pop(_MASK_TOKEN, None) is not None else {})
    for key, value in weights.items():
        if match := _QUERY_KEY_VALUE.fullmatch(key):
            attention.setdefault(match[1], {})[match[2]] = value
            continue
        name = next((m.expand(new) for rule, new in _DINOV3_RULES if (m := rule.fullmatch(key))), key)
        found[name], names[name] = value, names.get(name, _published(key))
    for block, parts in attention.items():
        name, key = f"blocks.{block}.attn.qkv.weight", f"backbone.layer.{block}.attention.q_proj.weight"
        if len(parts) == len("qkv") and len({value.shape for value in parts.values()}) == 1:
            found[name], names[name] = torch.cat([parts[part] for part in "qkv"]), key
        else:  # the comparison with the model names the part that is missing or has another shape
            found |= {f"backbone.layer.{block}.attention.{part}_proj.weight": value for part, value in parts.items()}
    return Pretrained(_LAYOUT, found, dropped, names=names)


def _published(key: str) -> str:
    """Return a file's own key of a weight, undoing `_with_decoder`."""
    return f"classifier.{key.removeprefix('decoder.conv1.')}" if key.startswith("decoder.conv1.") else key


_LAYOUT = "soft equivariant"
SOFT_EQUIVARIANCE = Layout(
    "keys that end in '.filter_w_T' and '.filter_x' (a snapshot of Tunable soft equivariance)", _recognise, _read
)
