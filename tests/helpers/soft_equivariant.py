"""Small snapshots in the layout of Tunable soft equivariance, and their computation with projections at every pass.

The computation follows the equations of the transformers, arXiv 2010.11929, 2304.07193 and 2508.10104, on the keys of
the file, and shares no code with dec-export.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dec_export.recipe.model import Recipe
from tests.helpers.models import formula_weights

WIDTH, HEADS, DEPTH, CLASSES, REGISTERS = 24, 3, 2, 5, 4
# The fields that the config.json of all published models share.
SHARED = {
    "model_type": "soft_equivariant",
    "num_labels": CLASSES,
    "n_rotations": 4,
    "soft_thresholding": 0.0,
    "soft_thresholding_pos": 0.5,
    "group_type": "rotation",
    "decomposition_method": "schur",
    "filter_patch_embeddings": True,
    "filter_attention_qkv": False,
    "filter_attention_output": False,
    "filter_mlp": False,
    "attention_output_filter_list": [],
    "soft_thresholding_attention_output": 0.1,
    "preserve_norm": False,
    "hard_mask": True,
    "joint_decomposition": True,
    "freeze_patch_embeddings": False,
    "freeze_position_embeddings": False,
    "ignore_index": 255,
    "transformers_version": "4.57.0",
    "torch_dtype": "float32",
}


@dataclass(frozen=True)
class Kind:
    """A published class at a small size: images of 64 pixels are 4 x 4 patches, DINOv2's file has positions for 5 x 5.

    prefix, block, patches, projection: the starts of the keys of the backbone, of a block, of the patch embedding, and
    of the projection of the positions.
    """

    pretrained: str
    prefix: str
    block: str
    patches: str
    projection: str
    patch: int
    grid: int
    epsilon: float


KINDS = {
    "filtered_vit_seg": Kind(
        "google/vit-base-patch16-224",
        "vit.",
        "vit.encoder.layer.",
        "vit.embeddings.patch_embeddings.projection.",
        "vit.embeddings.filter_pos.",
        16,
        4,
        1e-12,
    ),
    "filtered_dino2_seg": Kind(
        "facebook/dinov2-base",
        "dinov2.",
        "dinov2.encoder.layer.",
        "dinov2.embeddings.patch_embeddings.projection.",
        "dinov2.embeddings.filter_pos.",
        14,
        5,
        1e-6,
    ),
    "filtered_dinov3_seg": Kind(
        "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "backbone.",
        "backbone.layer.",
        "backbone.embeddings.patch_embeddings.",
        "backbone.rope_embeddings.filter_coords.",
        16,
        4,
        1e-5,
    ),
}
SIZE = 64


def config_of(arch: str, **fields: Any) -> dict[str, Any]:
    """Return the content of a config.json."""
    own = {"image_size": SIZE} if arch == "filtered_dinov3_seg" else {}
    auto_map = {"AutoConfig": "configuration_softeq.SoftEqConfig", "AutoModel": "modeling.Model"}
    return (
        {**SHARED, "model_arch": arch, "pretrained_model": KINDS[arch].pretrained, "auto_map": auto_map} | own | fields
    )


def rotations_mean(side: int) -> Tensor:
    """Return the projection of maps (side^2) to those that no turn by 90 degrees changes."""
    maps = torch.eye(side**2, dtype=torch.float64).reshape(-1, side, side)
    turned = torch.stack([torch.rot90(maps, k, (1, 2)) for k in range(4)]).mean(0)
    return turned.flatten(1).T.contiguous()


def reflections_mean(side: int) -> Tensor:
    """Return the projection of maps (side^2) to those that no reflection at the main diagonal changes."""
    maps = torch.eye(side**2, dtype=torch.float64).reshape(-1, side, side)
    return ((maps + maps.transpose(1, 2)) / 2).flatten(1).T.contiguous()


def _block_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    square, hidden = (WIDTH, WIDTH), 4 * WIDTH
    if arch == "filtered_dinov3_seg":
        linear = {"attention.q_proj": square, "attention.v_proj": square, "attention.o_proj": square}
        linear |= {"mlp.up_proj": (hidden, WIDTH), "mlp.down_proj": (WIDTH, hidden)}
    else:
        linear = {f"attention.attention.{part}": square for part in ("query", "key", "value")}
        linear["attention.output.dense"] = square
        first, second = (
            ("mlp.fc1", "mlp.fc2") if arch == "filtered_dino2_seg" else ("intermediate.dense", "output.dense")
        )
        linear |= {first: (hidden, WIDTH), second: (WIDTH, hidden)}
    norms = ("layernorm_before", "layernorm_after") if arch == "filtered_vit_seg" else ("norm1", "norm2")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (WIDTH,) for name in norms}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {key.replace("weight", "bias"): shape[:1] for key, shape in shapes.items()}
    if arch == "filtered_dinov3_seg":
        shapes["attention.k_proj.weight"] = square
    if arch != "filtered_vit_seg":
        shapes |= {f"layer_scale{n}.lambda1": (WIDTH,) for n in (1, 2)}
    return shapes


def weights_of(arch: str) -> dict[str, Tensor]:
    """Return the weights of a snapshot in float64."""
    kind = KINDS[arch]
    shapes: dict[str, tuple[int, ...]] = {
        f"{kind.prefix}embeddings.cls_token": (1, 1, WIDTH),
        f"{kind.patches}weight": (WIDTH, 3, kind.patch, kind.patch),
        f"{kind.patches}bias": (WIDTH,),
        "classifier.weight": (CLASSES, WIDTH, 1, 1),
        "classifier.bias": (CLASSES,),
    }
    for block in range(DEPTH):
        shapes |= {f"{kind.block}{block}.{key}": shape for key, shape in _block_shapes(arch).items()}
    last = f"{kind.prefix}{'norm' if arch == 'filtered_dinov3_seg' else 'layernorm'}"
    shapes |= {f"{last}.weight": (WIDTH,), f"{last}.bias": (WIDTH,)}
    if arch == "filtered_dinov3_seg":
        shapes[f"{kind.prefix}embeddings.register_tokens"] = (1, REGISTERS, WIDTH)
    else:
        shapes[f"{kind.prefix}embeddings.position_embeddings"] = (1, 1 + kind.grid**2, WIDTH)
    if arch == "filtered_vit_seg":
        shapes |= {"vit.pooler.dense.weight": (WIDTH, WIDTH), "vit.pooler.dense.bias": (WIDTH,)}
    else:
        shapes[f"{kind.prefix}embeddings.mask_token"] = (1, WIDTH) if arch == "filtered_dino2_seg" else (1, 1, WIDTH)
    kernels, positions = rotations_mean(kind.patch), reflections_mean(kind.grid)
    matrices = {f"{kind.patches}filter.{name}": kernels for name in ("filter_w_T", "filter_x")}
    matrices |= {f"{kind.projection}{name}": positions for name in ("filter_w_T", "filter_x")}
    return {**formula_weights(shapes), **{key: matrix.clone() for key, matrix in matrices.items()}}


def write_snapshot(folder: Path, arch: str, weights: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    """Write config.json and model.safetensors, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(arch, **fields), indent=2))
    save_file(weights_of(arch) if weights is None else weights, folder / "model.safetensors")
    return folder


def small(recipe: Recipe) -> Recipe:
    """Return the recipe of a snapshot for images of 64 pixels and the small sizes of its weights."""
    document = recipe.model_dump()
    backbone = document["backbone"]
    backbone["timm_args"] = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    backbone["image_size"] = SIZE - SIZE % (14 if "patch14" in recipe.backbone.timm else 16)
    document["input"]["image_size"] = SIZE
    if backbone["preparation"]:
        backbone["preparation"] |= {"resize": SIZE, "crop": backbone["image_size"]}
    return Recipe.model_validate(document)


def logits_of(arch: str, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the logits (B, classes, H, W) of a snapshot for images, with its projections applied at this pass."""
    kind = KINDS[arch]
    filtered = weights[f"{kind.patches}filter.filter_w_T"] @ weights[f"{kind.patches}weight"].flatten(2)[..., None]
    kernels = filtered.reshape(weights[f"{kind.patches}weight"].shape)
    maps = F.conv2d(images, kernels, weights[f"{kind.patches}bias"], stride=kind.patch)
    side = maps.shape[-1]
    tokens = torch.cat([weights[f"{kind.prefix}embeddings.cls_token"].expand(len(images), -1, -1), _tokens(maps)], 1)
    rotation = None
    if arch == "filtered_dinov3_seg":
        registers = weights[f"{kind.prefix}embeddings.register_tokens"].expand(len(images), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        rotation = _angles(weights[f"{kind.projection}filter_x"], side)
    else:
        tokens = tokens + _positions(weights, kind, side)
    for block in range(DEPTH):
        own = {
            key.split(".", kind.block.count(".") + 1)[-1]: value
            for key, value in weights.items()
            if key.startswith(f"{kind.block}{block}.")
        }
        tokens = _block(own, tokens, kind.epsilon, rotation)
    last = f"{kind.prefix}{'norm' if arch == 'filtered_dinov3_seg' else 'layernorm'}"
    tokens = F.layer_norm(tokens, (WIDTH,), weights[f"{last}.weight"], weights[f"{last}.bias"], kind.epsilon)
    features = tokens[:, -(side**2) :].transpose(1, 2).reshape(len(images), WIDTH, side, side)
    logits = F.conv2d(features, weights["classifier.weight"], weights["classifier.bias"])
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def _positions(weights: dict[str, Tensor], kind: Kind, side: int) -> Tensor:
    positions = weights[f"{kind.prefix}embeddings.position_embeddings"]
    patches = weights[f"{kind.projection}filter_x"] @ positions[:, 1:]
    if side != kind.grid:
        grid = patches.transpose(1, 2).reshape(1, WIDTH, kind.grid, kind.grid)
        patches = _tokens(F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False))
    return torch.cat([positions[:, :1], patches], 1)


def _angles(projection: Tensor, side: int) -> Tensor:
    """Return the angle (patches, head width / 2) by which each pair of channels of a head is turned."""
    centres = (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    rows, columns = projection @ rows.flatten(), projection @ columns.flatten()
    quarter = WIDTH // HEADS // 4
    frequencies = (1 / 100.0 ** (torch.arange(quarter, dtype=torch.float32) / quarter)).double()
    return 2 * math.pi * torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], 1)


def _block(own: dict[str, Tensor], tokens: Tensor, epsilon: float, angles: Tensor | None) -> Tensor:
    def named(*names: str) -> str:
        return next(name for name in names if f"{name}.weight" in own)

    def norm(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], epsilon)

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, own[f"{name}.weight"], own.get(f"{name}.bias"))

    normed = norm(named("norm1", "layernorm_before"), tokens)
    heads = [
        linear(named(f"attention.attention.{name}", f"attention.{name[0]}_proj"), normed)
        .unflatten(2, (HEADS, -1))
        .transpose(1, 2)
        for name in ("query", "key", "value")
    ]
    query, key, value = heads[0], heads[1], heads[2]
    if angles is not None:
        query, key = _turned(query, angles), _turned(key, angles)
    mixed = (query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(-1) @ value
    mixed = linear(named("attention.output.dense", "attention.o_proj"), mixed.transpose(1, 2).flatten(2))
    tokens = tokens + mixed * own.get("layer_scale1.lambda1", torch.ones(1))
    hidden = linear(
        named("mlp.fc1", "mlp.up_proj", "intermediate.dense"), norm(named("norm2", "layernorm_after"), tokens)
    )
    hidden = linear(named("mlp.fc2", "mlp.down_proj", "output.dense"), F.gelu(hidden))
    return tokens + hidden * own.get("layer_scale2.lambda1", torch.ones(1))


def _turned(heads: Tensor, angles: Tensor) -> Tensor:
    """Turn the channels of the patches (the last tokens), as complex numbers of the two halves of a head."""
    patches = heads[..., -len(angles) :, :]
    real, imaginary = patches.chunk(2, -1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([heads[..., : -len(angles), :], torch.cat([turned.real, turned.imag], -1)], 2)
