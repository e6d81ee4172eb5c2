"""Weights: reading them without executing anything, fitting them to a model, and saying where they came from."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe, Recipe, shipped_recipes
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights.files import Weights, find_state_dict, read_content, strip_prefixes
from dec_export.reference.weights.layouts.pretraining import BEYOND_BACKBONE, HEAD, Pretrained, fit, recognise
from dec_export.reference.weights.source import WeightSource

_HUB_TIMEOUT_SECONDS = 5


def load_reference(
    recipe: Recipe, checkpoint: Path | None = None, *, seed: int = 0, strict: bool = False
) -> tuple[DecModel, WeightSource]:
    """The recipe's model with the best weights at hand, float32, and where they came from.

    Without a checkpoint: the trained weights that ship with a recipe, if some do; else timm's pretrained backbone when
    it can be had, else seeded random weights, with seeded canonicalizers. A recipe with `cls_insert_layer` takes a
    self-supervised checkpoint, too, and seeded weights for what that lacks. `strict` refuses anything that did not come
    from a checkpoint.
    """
    shipped = _shipped_checkpoint(recipe) if checkpoint is None else None
    checkpoint = checkpoint or shipped
    model = create_reference(recipe, seed)
    if checkpoint is not None:
        content = read_content(checkpoint)
        may_be_partial = recipe.backbone.cls_insert_layer is not None and not shipped
        found = recognise(content, checkpoint) if may_be_partial else None
        if found is not None:
            return model, _load_backbone(model, found, checkpoint, seed, strict)
        load_weights(model, strip_prefixes(find_state_dict(content, checkpoint)), checkpoint)
        detail = f"All weights come from {checkpoint.name}{', which ships with dec-export' if shipped else ''}."
        return model, _from_checkpoint(recipe, checkpoint, detail)
    if strict:
        raise CheckpointError("No --checkpoint was given, and --strict-weights allows no other weights: name one.")
    reason = _load_pretrained(model, recipe)
    canonicalizer: Literal["random", "none"] = "random" if recipe.layers else "none"
    if reason is None:
        others = _lacking(recipe, has_classifier=True)
        detail = "The backbone has timm's pretrained weights" + (f"; {_random(others, seed)}." if others else ".")
        return model, WeightSource("pretrained", canonicalizer, detail, seed if others else None)
    detail = f"All weights are random, seed {seed}: {reason}."
    return model, WeightSource("random", canonicalizer, detail, seed)


def _from_checkpoint(recipe: Recipe, path: Path, detail: str, seed: int | None = None) -> WeightSource:
    """The source of weights that are in a checkpoint; with a seed, the canonicalizers' are not."""
    canonicalizer: Literal["checkpoint", "random", "none"] = "checkpoint" if seed is None else "random"
    return WeightSource(
        "checkpoint", canonicalizer if recipe.layers else "none", detail, seed, path.name, file_sha256(path)
    )


def _lacking(recipe: Recipe, *, has_classifier: bool) -> list[str]:
    """What a backbone of the recipe does not bring, in words; a classifier is the backbone's own head."""
    canonicalizers = ["the canonicalizers"] if recipe.layers else []
    if recipe.head is not None:
        return [*canonicalizers, "the head"]
    return canonicalizers if has_classifier else [*canonicalizers, "the linear head"]


def _random(parts: list[str], seed: int) -> str:
    are = "is" if parts == ["the head"] or parts == ["the linear head"] else "are"
    return f"{' and '.join(parts)} {are} random, seed {seed}"


def _load_backbone(model: DecModel, found: Pretrained, path: Path, seed: int, strict: bool) -> WeightSource:
    """Copy a self-supervised backbone into a model of seeded weights, which keeps those that the file lacks.

    Raises CheckpointError when the backbone does not fit, or `strict` and something is lacking; nothing is copied then.
    """
    recipe, whole = model.recipe, published_state_dict(model)
    backbone = {key: value for key, value in whole.items() if not key.startswith(BEYOND_BACKBONE)}
    if "pos_embed" in found.weights:
        _check_plain("pos_embed", found.weights["pos_embed"], backbone["pos_embed"], path)
    found = fit(found, recipe.backbone, backbone, path)
    has_classifier = any(key in found.weights for key in HEAD)
    lacking = _lacking(recipe, has_classifier=has_classifier)
    if lacking and strict:
        raise CheckpointError(
            f"'{path}' ({found.layout}) does not hold {' and '.join(lacking)}, and --strict-weights allows no random "
            "weights: give a checkpoint of the whole model, or leave --strict-weights out."
        )
    seeded = {k: v for k, v in whole.items() if k not in backbone or (k in HEAD and not has_classifier)}
    load_weights(model, {**seeded, **found.weights}, path)
    origin = f"come from {path.name} ({found.layout}{_doubt(found)})"
    if not lacking:
        return _from_checkpoint(recipe, path, f"All weights {origin}{found.dropped_in_words}.")
    detail = f"The backbone's weights {origin}; {_random(lacking, seed)}{found.dropped_in_words}."
    return _from_checkpoint(recipe, path, detail, seed)


def _doubt(found: Pretrained) -> str:
    said = "which does not say which block its class token joins before: the recipe is believed"
    return "" if found.insert_at is not None else f", {said}"


def _shipped_checkpoint(recipe: Recipe) -> Path | None:
    """The trained weights of a shipped recipe; None when there are none, or the recipe is another of that name."""
    if recipe.name not in shipped_recipes() or Recipe.named(recipe.name) != recipe:
        return None
    path = Path(str(resources.files("dec_export_models") / f"{recipe.name}.safetensors"))
    return path if path.is_file() else None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file or of a PyTorch state dict, under the published models' keys.

    Raises CheckpointError when the file is missing, truncated, or holds what could execute.
    """
    return strip_prefixes(find_state_dict(read_content(path), path))


def published_state_dict(model: DecModel) -> Weights:
    """The model's state under the published keys: the backbone's own, `DEM.` for the canonicalizers, `decoder.`."""
    return {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}


def load_weights(model: DecModel, weights: Weights, path: Path) -> None:
    """Copy weights under the published keys into the model; all must fit, or none is copied.

    Raises CheckpointError with the first differing keys and shapes.
    """
    expected = published_state_dict(model)
    differences = _differences(expected, weights)
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise CheckpointError(f"'{path}' does not fit recipe '{model.recipe.name}': {shown}.")
    converted = {key: _convert(key, weights[key], target, path) for key, target in expected.items()}
    with torch.no_grad():
        for key, target in expected.items():
            target.copy_(converted[key])


def _convert(key: str, found: Tensor, target: Tensor, path: Path) -> Tensor:
    _check_plain(key, found, target, path)
    converted = found.to(target.dtype)
    if not torch.isfinite(converted).all():
        raise CheckpointError(f"'{path}' holds NaN, or infinity in {target.dtype}, in '{key}'.")
    return converted


def _check_plain(key: str, found: Tensor, target: Tensor, path: Path) -> None:
    plain = found.layout is torch.strided and not found.is_quantized and found.device.type == "cpu"
    if not plain or found.is_floating_point() != target.is_floating_point() or found.is_complex():
        kind = f"{str(found.layout).removeprefix('torch.')} {str(found.dtype).removeprefix('torch.')}"
        raise CheckpointError(f"'{path}' holds '{key}' as {kind}, expected plain numbers like {target.dtype}.")


def _differences(expected: Weights, found: Weights) -> list[str]:
    has_canonicalizer, finds_one = (any(key.startswith("DEM.") for key in keys) for keys in (expected, found))
    if has_canonicalizer and not finds_one:
        return ["it has no canonicalizer (no key starts with 'DEM.'), only a backbone"]
    missing = [f"'{key}' {_shape(expected[key])} is missing" for key in expected if key not in found]
    extra = [f"'{key}' {_shape(found[key])} is not expected" for key in found if key not in expected]
    shapes = [
        f"'{key}' is {_shape(found[key])}, expected {_shape(value)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    return shapes + missing + extra


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _load_pretrained(model: DecModel, recipe: Recipe) -> str | None:
    """Load timm's pretrained weights into the backbone; returns why that was not possible, or None."""
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
        without_classifier: dict[str, Any] = {} if recipe.head is None else {"num_classes": 0}
        pretrained = timm.create_model(recipe.backbone.timm, pretrained=True, **without_classifier)
    except (OSError, RuntimeError, ValueError) as error:
        return f"timm's pretrained weights could not be loaded ({type(error).__name__})"
    model.backbone.load_state_dict(pretrained.state_dict())
    return None


def _trained_otherwise(recipe: BackboneRecipe) -> str | None:
    """Why timm's weights, which would fit, were not trained for what the recipe computes; None when they were."""
    if recipe.cls_insert_layer:
        return f"timm's pretrained weights of {recipe.timm} have their class token from the first block"
    if recipe.last_blocks > 1:
        return f"timm's pretrained weights of {recipe.timm} have no head that reads {recipe.last_blocks} blocks"
    if recipe.position_embedding != "learned":
        return f"timm's pretrained weights of {recipe.timm} have learned positions"
    return None


def _is_cached(hub_id: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return hub_id is not None and isinstance(try_to_load_from_cache(hub_id, "model.safetensors"), str)


def _hub_answers() -> bool:
    """Whether the model hub answers quickly; its own client would retry for most of a minute first."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # Behind a proxy, it is the proxy that must answer.
    address = urllib.parse.urlsplit(urllib.request.getproxies().get("https", constants.ENDPOINT))
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=_HUB_TIMEOUT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
