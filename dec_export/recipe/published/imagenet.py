"""The program for ImageNet, `train_imagenet.py` with `adapter_config.yaml`: DEC inserted into timm's models."""

from __future__ import annotations

import reprlib

from dec_export.errors import RecipeError
from dec_export.recipe.published.base import (
    ANTIALIAS_NOTE,
    NEVER,
    Entry,
    ImportOptions,
    Program,
    Translation,
    deep_equilibrium,
    discrete,
)
from dec_export.recipe.reading import Document
from dec_export.recipe.shipped import shipped_document

# The shipped recipe whose timm model stands for each `model_name` of the published configurations.
_BACKBONES = {"swin": "swin_t", "vit": "vit_little", "deit": "deit_t", "beit": "beit_b"}
# The program's own default model, which a configuration without a model_name leaves.
_DEFAULT = "resnet50"


def _translate(entry: Entry, options: ImportOptions) -> Translation:
    if options.image_size is not None or options.image_processor is not None:
        option = "--image-size" if options.image_size is not None else "--image-processor"
        raise RecipeError(
            f"'{entry.file}' is of the published program for ImageNet, whose images timm prepares: leave {option} out, "
            "or set the recipe's input."
        )
    base = shipped_document(options.backbone or _backbone(entry))
    if entry.flag("do_cannonicalization"):
        return Translation({**base, **_discrete(entry)})
    if not entry.flag("do_adaptation"):
        alone: Document = {"canonicalizer": None, "augment_layer_id": NEVER, "unaugment_layer_id": NEVER}
        return Translation({**base, **alone})
    adapted: Document = {
        "canonicalizer": deep_equilibrium(entry),
        "augment_layer_id": entry.value("augment_layer_id"),
        "unaugment_layer_id": entry.value("unaugment_layer_id"),
        "deform_resolution": entry.value("deform_resolution"),
    }
    mode = entry.value("interpolation_mode", "bilinear")
    if mode != "bilinear":
        adapted["interpolation_mode"] = mode
    return Translation({**base, **adapted}, (ANTIALIAS_NOTE,))


def _discrete(entry: Entry) -> Document:
    return {
        "canonicalizer": discrete(entry, "canon", "canon_kernel_sizes", entry.value("can_discrete_vals")),
        "augment_layer_id": [-1],
        "unaugment_layer_id": NEVER,
    }


def _backbone(entry: Entry) -> str:
    name = entry.value("model_name")
    if name is None and not entry.flag("do_adaptation") and not entry.flag("do_cannonicalization"):
        return _DEFAULT
    if not isinstance(name, str) or name not in _BACKBONES:
        raise RecipeError(
            f"'{entry.file}' has model_name {reprlib.repr(name)}, expected one of {', '.join(_BACKBONES)}: "
            "name the model with --backbone."
        )
    return _BACKBONES[name]


IMAGENET = Program("model_name", frozenset({"model_name", "adapter_coarse_resolution"}), _translate)
