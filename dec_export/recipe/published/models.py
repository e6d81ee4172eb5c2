"""The models of the published program on transformers, and timm's models that compute the same functions.

Source: the published implementation of arXiv 2508.14187; transformers 4.44.2, its image processors with Pillow 10.0.1,
and torchvision 0.16.2, which the published environment pins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dec_export.recipe.reading import Document

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _processor(
    resize: int, kind: str, constants: tuple[tuple[float, ...], tuple[float, ...]], *, crop: int | None = None
) -> Document:
    """Return the preparation by one of transformers' image processors; Pillow, which they resize with, antialiases."""
    mean, std = map(list, constants)
    return {"resize": resize, "filter": kind, "antialias": True, "crop": crop, "mean": mean, "std": std}


@dataclass(frozen=True)
class PublishedModel:
    """A model of the published program.

    backbone: the fields of the recipe's backbone, except those that depend on the configuration.
    preparation: what the image processor of the published weights does.
    default: the fields that differ in the library's default configuration (use_pretrained false).
    classifier: the fields that differ in a classifier.
    image_sizes: whether the backbone takes images of other sizes than 224 pixels.
    undoes: whether the classifier's warps are undone after their blocks, too.
    stays_warped: whether not even the dense model undoes the warps of its stages.
    shifted: whether the dense model reads its tokens shifted by one.
    unwarps_input: whether the program can undo a warp of the image.
    resizes_features: whether deform_resolution is used.
    taps: the first tap of a DPT head, and whether it reads the outputs or the inputs of stages.
    """

    backbone: Mapping[str, object]
    preparation: Mapping[str, object]
    default: Mapping[str, object] = field(default_factory=dict)
    classifier: Mapping[str, object] = field(default_factory=dict)
    image_sizes: bool = False
    undoes: bool = False
    stays_warped: bool = False
    shifted: bool = False
    unwarps_input: bool = True
    resizes_features: bool = True
    taps: tuple[int, str] = (0, "input")

    def document(self, *, pretrained: bool, classifies: bool) -> Document:
        """Return the fields of the recipe's backbone."""
        default = {} if pretrained else self.default
        return {"image_size": 224, **self.backbone, **default, **(self.classifier if classifies else {})}


# The stages of Swin in transformers downsample at their end, those of timm at their beginning.
_SWIN_STAGES = {
    "stages": [f"layers.{stage}.blocks" for stage in range(4)],
    "ends": [*(f"layers.{stage}.downsample" for stage in range(1, 4)), "layers.3.blocks"],
    "embedding": "patch_embed",
    "layout": "channels_last",
    "resizes_embedding": False,
}
TOKENS_WITHOUT_RESIZED_EMBEDDING = {
    "stages": "blocks",
    "embedding": "norm_pre",
    "layout": "tokens",
    "resizes_embedding": False,
}

MODELS: dict[str, PublishedModel] = {
    "vit": PublishedModel(
        {"timm": "vit_base_patch16_224", "family": "vit", "layer_norm_eps": 1e-12},
        # The one fast processor: it resizes by torchvision, which did not antialias tensors.
        {**_processor(224, "bilinear", _HALF), "antialias": False},
        undoes=True,
    ),
    "deit": PublishedModel(
        {"timm": "deit_base_patch16_224", "family": "vit", "layer_norm_eps": 1e-12, "timm_args": {"reg_tokens": 1}},
        _processor(256, "bicubic", _IMAGENET, crop=224),
        undoes=True,
        shifted=True,
        unwarps_input=False,
        resizes_features=False,
    ),
    "beit": PublishedModel(
        {"timm": "beit_base_patch16_224", "family": "beit", "layer_norm_eps": 1e-12},
        _processor(224, "bilinear", _HALF),
        default={"timm_args": {"use_rel_pos_bias": False}},
        undoes=True,
        unwarps_input=False,
        resizes_features=False,
    ),
    "dino": PublishedModel(
        {"timm": "vit_base_patch14_dinov2", "family": "vit"},
        _processor(256, "bicubic", _IMAGENET, crop=224),
        default={"timm_args": {"patch_size": 16}},
        classifier={"readout": "token_and_mean"},
        image_sizes=True,
    ),
    "swin_transformer": PublishedModel(
        {"timm": "swin_tiny_patch4_window7_224", "family": "custom", "insertion": _SWIN_STAGES},
        _processor(224, "bicubic", _IMAGENET),
        taps=(-1, "output"),
    ),
    "resnet": PublishedModel(
        {"timm": "resnet50", "family": "resnet"},
        _processor(256, "bicubic", _IMAGENET, crop=224),
        image_sizes=True,
        stays_warped=True,
        resizes_features=False,
    ),
}
