"""The translation of the `config.json` of "Tunable soft equivariance" (arXiv 2603.26657) to recipes.

The published segmentation models are plain vision transformers with a linear head, whose patch embedding and positions
pass fixed projections; docs/bring-your-checkpoint.md, section "Relatives". Source: the `config.json` of the ten
published models, the published configuration class, and the training program's evaluation of images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dec_export.errors import RecipeError
from dec_export.recipe.base import Frozen
from dec_export.recipe.published.base import ImportOptions, Translation
from dec_export.recipe.reading import Document, read_text, validate

MODEL_TYPE = "soft_equivariant"
CONFIG_NAME = "config.json"
_Softness = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=200)]
_Mean, _Deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class _Backbone:
    """A backbone of the published models: its timm model, and the size of image that the training program used."""

    pretrained: str
    timm: str
    patch: int
    image_size: int
    layer_norm_eps: float | None = None
    position_embedding: str = "learned"


_BACKBONES = {
    "filtered_vit_seg": _Backbone("google/vit-base-patch16-224", "vit_base_patch16_224", 16, 224, layer_norm_eps=1e-12),
    "filtered_dino2_seg": _Backbone("facebook/dinov2-base", "vit_base_patch14_dinov2", 14, 512),
    "filtered_dinov3_seg": _Backbone(
        "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "vit_large_patch16_dinov3_qkvb",
        16,
        512,
        position_embedding="rotary_table",
    ),
}


class SoftEquivariantConfig(Frozen):
    """The fields of a published `config.json`.

    model_arch: the published class of the model.
    pretrained_model: the name of the backbone on the model hub.
    num_labels: the number of classes of the logits.
    soft_thresholding, soft_thresholding_pos: the softness of the projections of the patch embedding and of the
    positions: 0 projects to the invariant subspace, 1 does not project.
    n_rotations, group_type, decomposition_method, joint_decomposition: how the projections were computed. The
    checkpoint holds the projections themselves.
    hard_mask, preserve_norm: whether a projection keeps directions whole or not at all, and whether the norm is
    restored after it.
    image_size: the size of the images whose grid of patches the projection of DINOv3's positions belongs to.
    auto_map: the code that the library transformers would execute; it is never read.
    """

    model_type: Literal["soft_equivariant"]
    model_arch: Literal["filtered_vit_seg", "filtered_dino2_seg", "filtered_dinov3_seg"]
    pretrained_model: _Text
    num_labels: Annotated[int, Field(strict=True, ge=1, le=100_000)]
    soft_thresholding: _Softness
    soft_thresholding_pos: _Softness
    n_rotations: Annotated[int, Field(strict=True, ge=-1, le=1_000_000)]
    group_type: Literal["rotation", "roto_reflection"]
    decomposition_method: Literal["schur", "svd"]
    joint_decomposition: bool = True
    hard_mask: bool
    preserve_norm: bool = False
    filter_patch_embeddings: bool = True
    filter_attention_qkv: bool = False
    filter_attention_output: bool = False
    filter_mlp: bool = False
    attention_output_filter_list: tuple[int, ...] = ()
    soft_thresholding_attention_output: _Softness = 0.1
    freeze_patch_embeddings: bool = False
    freeze_position_embeddings: bool = False
    ignore_index: int = 255
    image_size: Annotated[int, Field(strict=True, ge=16, le=4096)] | None = None
    architectures: tuple[_Text, ...] | None = None
    auto_map: dict[_Text, _Text] | None = None
    dtype: _Text | None = None
    torch_dtype: _Text | None = None
    transformers_version: _Text | None = None

    @model_validator(mode="after")
    def _check(self) -> SoftEquivariantConfig:
        backbone = _BACKBONES[self.model_arch]
        if self.pretrained_model != backbone.pretrained:
            raise ValueError(
                f"pretrained_model of {self.model_arch} must be '{backbone.pretrained}', "
                f"found '{self.pretrained_model}'"
            )
        wanted = {
            "filter_patch_embeddings": True,
            "filter_attention_output": False,
            "hard_mask": True,
            "preserve_norm": False,
            **({"joint_decomposition": True} if self.group_type == "roto_reflection" else {}),
        }
        for field, value in wanted.items():
            if getattr(self, field) is not value:
                raise ValueError(
                    f"{field} must be {str(value).lower()}, as in every published model: other filters do not fold "
                    "into the weights of a plain transformer"
                )
        if self.image_size is not None and self.model_arch != "filtered_dinov3_seg":
            raise ValueError(f"image_size goes with filtered_dinov3_seg and with no other, found {self.model_arch}")
        return self


def config_file(path: str | Path) -> Path:
    """Return the `config.json` of a snapshot's folder, or the file itself."""
    path = Path(path)
    return path / CONFIG_NAME if path.is_dir() else path


def is_config(path: str | Path) -> bool:
    """Return whether a path names the folder of a snapshot or its `config.json`, and not a recipe."""
    return Path(path).name == CONFIG_NAME or (Path(path) / CONFIG_NAME).is_file()


def read_config(path: Path) -> SoftEquivariantConfig:
    """Return the content of a published `config.json`.

    Raises RecipeError when the file cannot be read, describes another type of model, or has a field or a value that
    no published model has.
    """
    document = _read_json(path)
    found = document.get("model_type")
    if found != MODEL_TYPE:
        shown = repr(found) if isinstance(found, str) and len(found) <= 100 else "none that is known"
        raise RecipeError(
            f"'{path}' describes a model of type {shown}, expected '{MODEL_TYPE}': give the config.json of a published "
            "soft equivariant model, or a recipe; code that a config.json names is never executed."
        )
    return validate(SoftEquivariantConfig, document, f"'{path}'")


def _read_json(path: Path) -> Document:
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise RecipeError(f"'{path}' is not valid JSON: {reason}.") from error
    if not isinstance(document, dict):
        raise RecipeError(f"'{path}' holds a {type(document).__name__}, expected an object of configuration fields.")
    return document


def relative_translation(path: str | Path, options: ImportOptions) -> Translation:
    """Return the document of a recipe, not yet checked, for the `config.json` of a snapshot or for its folder.

    Raises RecipeError for a file that `read_config` refuses, and for options that a snapshot has no use for.
    """
    file = config_file(path)
    config = read_config(file)
    if options.backbone or options.image_processor:
        raise RecipeError(
            f"'{file}' already names its backbone, and its images are those of the published training: leave "
            "--backbone and --image-processor out."
        )
    if options.image_size and config.model_arch != "filtered_dino2_seg":
        raise RecipeError(
            f"'{file}' describes {config.model_arch}, whose positions belong to one size of image: leave --image-size "
            "out."
        )
    document = relative_document(config, recipe_name(file), options.image_size)
    return Translation(document, (_note(file, document["input"]["image_size"]),))


def _note(file: Path, size: int) -> str:
    return (
        f"'{file}' does not say how images are prepared: the recipe has the evaluation of the published training, "
        f"both sides resized to {size} pixels and ImageNet's mean and standard deviation."
    )


def relative_document(config: SoftEquivariantConfig, name: str, image_size: int | None = None) -> Document:
    """Return the document of a recipe, not yet checked, for a published model.

    name: the recipe's name. image_size: the size of its images; None is that of the published training.
    Images are those of the training program's evaluation: both sides resized to the size of its training, ImageNet's
    constants. DINOv2's patches of 14 pixels leave the last rows and columns of 512 pixels out.
    """
    backbone = _BACKBONES[config.model_arch]
    size = image_size or config.image_size or backbone.image_size
    kept = size - size % backbone.patch
    corner = {"resize": size, "crop": kept, "crop_at": "corner"}
    return {
        "name": name,
        "task": "segmentation",
        "backbone": {
            "timm": backbone.timm,
            "family": "vit",
            "image_size": kept,
            "num_classes": config.num_labels,
            "layer_norm_eps": backbone.layer_norm_eps,
            "position_embedding": backbone.position_embedding,
            "preparation": None if kept == size else corner,
        },
        "input": {
            "image_size": size,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": _Mean,
            "std": _Deviation,
            "squash": True,
        },
        "canonicalizer": None,
        "head": {"kind": "linear"},
        "augment_layer_id": [-100],
        "unaugment_layer_id": [-100],
    }


def recipe_name(path: Path) -> str:
    """Return a recipe's name for the `config.json` of a snapshot: that of its folder, or of its model in a hub's cache.

    A cache keeps a snapshot in `models--OWNER--NAME/snapshots/REVISION`.
    """
    folder = path.absolute().parent
    stem = folder.parent.parent.name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in stem)
    return name.lstrip("_.-")[:100] or MODEL_TYPE
