"""The translation of the published training code's configuration file, `adapter_config.yaml`, to recipes.

Source: the published implementation of arXiv 2508.14187; docs/semantics.md says what each hyperparameter does.
"""

from __future__ import annotations

from dec_export.errors import RecipeError
from dec_export.recipe.reading import Document
from dec_export.recipe.shipped import shipped_document

# The shipped recipe whose timm model stands for each `model_name` of the published configurations.
_BACKBONES = {"swin": "swin_t", "vit": "vit_little", "deit": "deit_t", "beit": "beit_b"}


def is_published(document: Document) -> bool:
    """Return whether a document is a configuration of the published code, or a file of several configurations."""
    return "backbone" not in document and ("model_name" in document or bool(_configurations(document)))


def published_document(document: Document, file: str, name: str, backbone: str | None) -> Document:
    """Return the document of a recipe, not yet checked, for one configuration of the published code.

    name: the name of the configuration if the file holds several.
    backbone: the name of the shipped recipe to whose timm model the configuration is applied; None means the model of
    the configuration's `model_name`.
    Raises RecipeError when no usable configuration is named, its model is unknown, or it does not ask for a deep
    equilibrium canonicalizer.
    """
    config = document if "model_name" in document else _choose_configuration(document, file, name)
    return _translate(config, shipped_document(backbone or _published_backbone(config, file)))


def _configurations(document: Document) -> list[str]:
    return [
        name for name, value in document.items() if isinstance(value, dict) and "adapter_coarse_resolution" in value
    ]


def _choose_configuration(document: Document, file: str, config_name: str) -> Document:
    usable = [name for name in _configurations(document) if document[name].get("do_adaptation")]
    if config_name not in usable:
        found = f"'{config_name}' is none of them" if config_name else "none was named"
        raise RecipeError(
            f"'{file}' holds several configurations and {found}: write --recipe {file}#NAME "
            f"with NAME one of {', '.join(usable) or '(no configuration in it uses DEC)'}."
        )
    chosen: Document = document[config_name]
    return chosen


def _published_backbone(config: Document, file: str) -> str:
    name = config.get("model_name")
    if not isinstance(name, str) or name not in _BACKBONES:
        raise RecipeError(
            f"'{file}' has model_name {name!r}, expected one of {', '.join(_BACKBONES)}: "
            "name the model with --backbone."
        )
    return _BACKBONES[name]


def _translate(config: Document, base: Document) -> Document:
    if config.get("interpolation_mode", "bilinear") != "bilinear":
        raise RecipeError(f"interpolation_mode must be bilinear, found {config['interpolation_mode']!r}.")
    if not config.get("deep_equlibrium_mode", True):
        raise RecipeError("deep_equlibrium_mode is off: only the deep equilibrium canonicalizer can be exported.")
    layers, blocks = config.get("num_phi_layers"), config.get("adapter_num_layers")
    resolution, deform = config.get("adapter_coarse_resolution"), config.get("deform_resolution")
    return {
        **base,
        "canonicalizer": {
            "coarse_resolution": _first_values(resolution, layers),
            "channels": config.get("adapter_channels"),
            "kernel_sizes": _first_values(config.get("adapter_filter_size"), blocks),
            "pool_rates": _first_values(config.get("adapter_pool_rate"), blocks),
            "scale_image": config.get("dem_image_scale", True),
            "max_iter": config.get("inner_epochs"),
        },
        "augment_layer_id": config.get("augment_layer_id"),
        "unaugment_layer_id": config.get("unaugment_layer_id"),
        "deform_resolution": None if deform in (None, "None") else deform,
    }


def _first_values(values: object, count: object) -> object:
    return values[:count] if isinstance(values, list) and isinstance(count, int) else values
