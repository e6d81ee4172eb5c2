"""The loading of a model's weights: from a checkpoint, from timm, or from a seeded random generator."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Literal

from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.recipe.shipped import shipped_recipes
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights.arguments import check_arguments
from dec_export.reference.weights.backbones import backbone_in, classifier_keys, fit_backbone
from dec_export.reference.weights.files import Weights, find_state_dict, read_content, strip_prefixes
from dec_export.reference.weights.fitting import check_plain, load_weights, published_state_dict
from dec_export.reference.weights.hub import load_pretrained
from dec_export.reference.weights.layout import BEYOND_BACKBONE, Checkpoint, Pretrained
from dec_export.reference.weights.layouts import layout_of
from dec_export.reference.weights.layouts.soft_equivariance import SOFT_EQUIVARIANCE
from dec_export.reference.weights.layouts.transformers import TRANSFORMERS
from dec_export.reference.weights.relatives import weights_file
from dec_export.reference.weights.several_files import check_is_backbone
from dec_export.reference.weights.source import WeightSource
from dec_export.reference.weights.whole_model import read_whole_model


def load_reference(
    recipe: Recipe,
    checkpoint: Path | None = None,
    *,
    canonicalizers: Path | None = None,
    seed: int = 0,
    strict: bool = False,
) -> tuple[DecModel, WeightSource]:
    """Return the recipe's model in float32 with the best weights that are available, and the source of the weights.

    Without a checkpoint, the weights are the trained weights that ship with the recipe, if there are some; else timm's
    pretrained backbone, if it is cached or can be downloaded, with seeded random canonicalizers; else all weights are
    random and seeded. The checkpoint may be the folder of a published snapshot. A self-supervised checkpoint that a
    layout recognises is accepted as well, with seeded random weights for the parts that the checkpoint lacks.
    `canonicalizers` is the file of the canonicalizers if they have one of their own; the one beside the checkpoint is
    found without it. `strict` refuses all weights that are not from a checkpoint.
    Raises CheckpointError when a checkpoint cannot be read or does not fit, RecipeError when timm cannot create the
    recipe's backbone.
    """
    shipped = _shipped_checkpoint(recipe) if checkpoint is None else None
    checkpoint = shipped if checkpoint is None else weights_file(checkpoint)
    model = create_reference(recipe, seed)
    if checkpoint is not None:
        content = Checkpoint(read_content(checkpoint), checkpoint)
        check_is_backbone(content)
        backbone = None if shipped else _backbone_alone(content, model)
        if backbone is not None:
            if canonicalizers is not None:
                raise CheckpointError(
                    f"'{checkpoint}' ({backbone.layout}) belongs to no canonicalizers, and --canonicalizer-checkpoint "
                    f"names '{canonicalizers}': leave it out, or give the backbone of the same run."
                )
            return model, _load_backbone(model, backbone, checkpoint, seed, strict)
        if recipe.backbone.cls_insert_layer is None:
            check_arguments(recipe, content.arguments, checkpoint)
        whole = read_whole_model(recipe, content, published_state_dict(model), canonicalizers)
        load_weights(model, whole.weights, whole.origin)
        detail = f"All weights come from {whole.detail}{', which ships with dec-export' if shipped else ''}."
        return model, _from_checkpoint(recipe, checkpoint, detail, second=whole.origin.canonicalizers)
    if canonicalizers is not None:
        raise CheckpointError(
            f"--canonicalizer-checkpoint names '{canonicalizers}' without a --checkpoint: name the backbone's file."
        )
    if strict:
        raise CheckpointError("No --checkpoint was given, and --strict-weights allows no other weights: name one.")
    reason = load_pretrained(model, recipe)
    canonicalizer: Literal["random", "none"] = "random" if recipe.layers else "none"
    if reason is None:
        others = _lacking(recipe, has_classifier=True)
        detail = "The backbone has timm's pretrained weights" + (f"; {_random(others, seed)}." if others else ".")
        return model, WeightSource("pretrained", canonicalizer, detail, seed if others else None)
    detail = f"All weights are random, seed {seed}: {reason}."
    return model, WeightSource("random", canonicalizer, detail, seed)


def _backbone_alone(content: Checkpoint, model: DecModel) -> Pretrained | None:
    """Return the self-supervised backbone in a checkpoint, or None for a checkpoint of a whole model."""
    if model.recipe.backbone.cls_insert_layer is None and layout_of(content) in (SOFT_EQUIVARIANCE, TRANSFORMERS):
        return None
    return backbone_in(content, model.recipe, _backbone(model), classifier_keys(model.backbone))


def _from_checkpoint(
    recipe: Recipe, path: Path, detail: str, seed: int | None = None, second: Path | None = None
) -> WeightSource:
    """Return the source of weights from a checkpoint; with a seed, those of the canonicalizers are random.

    second: the canonicalizers' file, if they have one of their own.
    """
    canonicalizer: Literal["checkpoint", "random", "none"] = "checkpoint" if seed is None else "random"
    source = WeightSource(
        "checkpoint", canonicalizer if recipe.layers else "none", detail, seed, path.name, file_sha256(path)
    )
    if second is None:
        return source
    return replace(source, canonicalizer_file=second.name, canonicalizer_sha256=file_sha256(second))


def _lacking(recipe: Recipe, *, has_classifier: bool) -> list[str]:
    """Return the names of the parts that a checkpoint of the backbone lacks; its classifier is its own head."""
    canonicalizers = ["the canonicalizers"] if recipe.layers else []
    if recipe.head is not None:
        return [*canonicalizers, "the head"]
    return canonicalizers if has_classifier else [*canonicalizers, "the linear head"]


def _random(parts: list[str], seed: int) -> str:
    are = "is" if parts == ["the head"] or parts == ["the linear head"] else "are"
    return f"{' and '.join(parts)} {are} random, seed {seed}"


def _load_backbone(model: DecModel, found: Pretrained, path: Path, seed: int, strict: bool) -> WeightSource:
    """Copy a self-supervised backbone into a model, which keeps its seeded weights for the parts that the file lacks.

    Raises CheckpointError, and copies nothing, when the backbone does not fit, or when a part is lacking and `strict`
    is set.
    """
    recipe, backbone, classifier = model.recipe, _backbone(model), classifier_keys(model.backbone)
    if "pos_embed" in found.weights and "pos_embed" in backbone:
        check_plain("pos_embed", found.weights["pos_embed"], backbone["pos_embed"], path)
    found = fit_backbone(found, recipe.backbone, backbone, path)
    has_classifier = any(key in found.weights for key in classifier)
    lacking = _lacking(recipe, has_classifier=has_classifier)
    if lacking and strict:
        raise CheckpointError(
            f"'{path}' ({found.layout}) does not hold {' and '.join(lacking)}, and --strict-weights allows no random "
            "weights: give a checkpoint of the whole model, or leave --strict-weights out."
        )
    whole, drawn = published_state_dict(model), [] if has_classifier else classifier
    seeded = {k: v for k, v in whole.items() if k not in backbone or k in drawn}
    load_weights(model, {**seeded, **found.weights}, path)
    origin = f"come from {path.name} ({found.layout}{_doubt(found, recipe)})"
    if not lacking:
        return _from_checkpoint(recipe, path, f"All weights {origin}{found.dropped_in_words}.")
    detail = f"The backbone's weights {origin}; {_random(lacking, seed)}{found.dropped_in_words}."
    return _from_checkpoint(recipe, path, detail, seed)


def _backbone(model: DecModel) -> Weights:
    """Return the state of the model's backbone under the published keys."""
    return {key: value for key, value in published_state_dict(model).items() if not key.startswith(BEYOND_BACKBONE)}


def _doubt(found: Pretrained, recipe: Recipe) -> str:
    unknown = "which does not say which block its class token joins before: the recipe is believed"
    return "" if recipe.backbone.cls_insert_layer is None or found.insert_at is not None else f", {unknown}"


def _shipped_checkpoint(recipe: Recipe) -> Path | None:
    """Return the file of a shipped recipe's trained weights.

    It is None when there is no such file, or when the recipe differs from the shipped recipe of its name.
    """
    if recipe.name not in shipped_recipes() or Recipe.named(recipe.name) != recipe:
        return None
    path = Path(str(resources.files("dec_export_models") / f"{recipe.name}.safetensors"))
    return path if path.is_file() else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """Return the tensors of a safetensors file or of a PyTorch state dict, under the published models' keys.

    Raises CheckpointError when the file is missing or truncated, or holds objects that could execute code.
    """
    return strip_prefixes(find_state_dict(read_content(path), path))
