"""The preprocessing that a training program on timm stored beside its weights, in the `args` of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import timm
from pydantic import ValidationError
from timm.data.config import resolve_data_config

from dec_export.data.preprocessing import Preprocessing
from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.recipe.preparation import Interpolation
from dec_export.reference.model import preprocessing_of
from dec_export.reference.weights.files import read_content
from dec_export.reference.weights.layout import Checkpoint

# The arguments from which timm's `resolve_data_config` takes the preprocessing of an evaluation.
_ARGUMENTS = ("in_chans", "chans", "input_size", "img_size", "interpolation", "mean", "std", "crop_pct")
# The arguments of which a program on timm has at least one.
_MARKS = frozenset(_ARGUMENTS) - {"in_chans", "chans"}
# What is compared: a field of Preprocessing, its name in messages, and the recipe's field that sets it.
_COMPARED = (
    ("size", "an image size", "backbone.image_size"),
    ("mean", "a mean", "input.mean"),
    ("std", "a standard deviation", "input.std"),
    ("crop_pct", "a crop_pct", "input.crop_pct"),
    ("interpolation", "an interpolation", "input.interpolation"),
)


def stored_preprocessing(recipe: Recipe, arguments: Mapping[str, object], path: Path) -> Preprocessing | None:
    """Return how images were prepared for the evaluation of a training; None if its arguments are not those of timm.

    An argument of None, and an interpolation of "", mean the default of the model that was trained.
    Raises CheckpointError, which names the file by `path`, for arguments that no training with timm has.
    """
    if not _MARKS & set(arguments):
        return None
    own = preprocessing_of(recipe)
    # The values come from a file, and each argument of timm has a type of its own.
    stated: dict[str, Any] = {name: arguments.get(name) for name in _ARGUMENTS}
    try:
        data = resolve_data_config(stated, pretrained_cfg=_pretrained_cfg(recipe, arguments))
        channels, height, width = data["input_size"]
        if channels != 3 or height != width:
            raise ValueError(f"its images are {channels} x {height} x {width}")
        if data["interpolation"] not in get_args(Interpolation):
            raise ValueError(f"its interpolation is {data['interpolation']!r}")
        mean, std = (_colours(data[name]) for name in ("mean", "std"))
        return Preprocessing(height, float(data["crop_pct"]), data["interpolation"], mean, std, squash=own.squash)
    except (AssertionError, TypeError, ValueError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(
            f"'{path}' holds arguments of a training whose preprocessing is not known ({reason or 'wrong types'}), "
            "expected square images in RGB: give a checkpoint without 'args', and state the preprocessing in the "
            "recipe's input."
        ) from error


def _colours(values: Sequence[Any]) -> tuple[float, float, float]:  # The values come from a file.
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _pretrained_cfg(recipe: Recipe, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return timm's configuration of the model that was trained, which may have another tag than the recipe's."""
    trained, own = arguments.get("model"), recipe.backbone.timm
    name = trained if isinstance(trained, str) and trained.split(".")[0] == own.split(".")[0] else own
    try:
        cfg = timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(own)
    except RuntimeError:  # timm knows the architecture but not the tag
        cfg = timm.get_pretrained_cfg(own)
    return {} if cfg is None else cfg.to_dict()


def check_arguments(recipe: Recipe, arguments: Mapping[str, object], path: Path) -> None:
    """Raise CheckpointError, which names the first difference, when a checkpoint was trained on other images.

    That is to say, on images that were prepared otherwise than the recipe says. Nothing is checked without arguments.
    """
    stored = stored_preprocessing(recipe, arguments, path)
    if stored is None:
        return
    own = preprocessing_of(recipe)
    for field, name, option in _COMPARED:
        wanted, found = getattr(stored, field), getattr(own, field)
        if wanted != found:
            value = list(wanted) if isinstance(wanted, tuple) else wanted
            raise CheckpointError(
                f"'{path}' was trained with {name} of {value}, as its args say, and recipe '{recipe.name}' has "
                f"{list(found) if isinstance(found, tuple) else found}: import the recipe with --checkpoint, or set "
                f"{option} to {value}."
            )


def with_preprocessing_of(path: Path, recipe: Recipe) -> Recipe:
    """Return the recipe with the preprocessing that a checkpoint was trained with; unchanged if it does not say.

    Raises CheckpointError when the file cannot be read, or holds arguments that no training with timm has.
    """
    stored = stored_preprocessing(recipe, Checkpoint(read_content(path), path).arguments, path)
    if stored is None:
        return recipe
    backbone = recipe.backbone.model_copy(update={"image_size": stored.size})
    own = preprocessing_of(recipe.model_copy(update={"backbone": backbone}))
    differing = {name: getattr(stored, name) for name, _, _ in _COMPARED if getattr(stored, name) != getattr(own, name)}
    inputs = recipe.input.model_copy(update=differing)
    return Recipe.model_validate(recipe.model_copy(update={"backbone": backbone, "input": inputs}).model_dump())
