"""timm's pretrained weights, which the machine has in its cache or can download."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from typing import Any

import timm

from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.model import DecModel

_HUB_TIMEOUT_SECONDS = 5


def load_pretrained(model: DecModel, recipe: Recipe) -> str | None:
    """Load timm's pretrained weights into the backbone; return the reason when that is not possible, else None."""
    cfg = timm.get_pretrained_cfg(recipe.backbone.timm)
    if cfg is None or not cfg.has_weights:
        return f"timm has no pretrained weights for {recipe.backbone.timm}"
    if other := _trained_otherwise(recipe.backbone):
        return other
    if recipe.head is None and cfg.num_classes != recipe.backbone.num_classes:
        return f"timm's pretrained weights have {cfg.num_classes} classes, not {recipe.backbone.num_classes}"
    if recipe.backbone.timm_args:
        return f"the recipe changes the sizes of timm's {recipe.backbone.timm}"
    if not _is_cached(cfg.hf_hub_id) and not _hub_answers():
        return "timm's pretrained weights are not cached and the model hub cannot be reached"
    try:
        # Each model of timm has arguments of its own, which have no common type.
        without_classifier: dict[str, Any] = {} if recipe.head is None else {"num_classes": 0}
        pretrained = timm.create_model(recipe.backbone.timm, pretrained=True, **without_classifier)
    except (OSError, RuntimeError, ValueError) as error:
        return f"timm's pretrained weights could not be loaded ({type(error).__name__})"
    model.backbone.load_state_dict(pretrained.state_dict())
    return None


def _trained_otherwise(recipe: BackboneRecipe) -> str | None:
    """Return why timm's weights, although they would fit, were not trained for this backbone; None if they were."""
    if recipe.cls_insert_layer:
        return f"timm's pretrained weights of {recipe.timm} have their class token from the first block"
    if recipe.readout != "timm":
        return f"timm's pretrained weights of {recipe.timm} have no classifier that reads '{recipe.readout}'"
    if recipe.last_blocks > 1:
        return f"timm's pretrained weights of {recipe.timm} have no head that reads {recipe.last_blocks} blocks"
    if recipe.position_embedding == "rotary_table":
        return f"timm's pretrained weights of {recipe.timm} have no rotary table"
    if recipe.avgpool_patchtokens:
        return f"timm's pretrained weights of {recipe.timm} have no head that reads the mean of the patches"
    if recipe.position_embedding != "learned":
        return f"timm's pretrained weights of {recipe.timm} have learned positions"
    return None


def _is_cached(hub_id: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return hub_id is not None and isinstance(try_to_load_from_cache(hub_id, "model.safetensors"), str)


def _hub_answers() -> bool:
    """Return whether the model hub answers quickly; its own client would first retry for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # Behind a proxy, the proxy must answer in place of the hub.
    address = urllib.parse.urlsplit(urllib.request.getproxies().get("https", constants.ENDPOINT))
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=_HUB_TIMEOUT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
