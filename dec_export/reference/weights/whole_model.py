"""The weights of a whole model: from one file, or from the several files of the published dense and digits program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dec_export.errors import CheckpointError
from dec_export.recipe.model import Recipe
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.fitting import Origin
from dec_export.reference.weights.layout import Checkpoint
from dec_export.reference.weights.layouts.discrete import with_our_keys
from dec_export.reference.weights.layouts.soft_equivariance import SOFT_EQUIVARIANCE
from dec_export.reference.weights.layouts.transformers import TRANSFORMERS
from dec_export.reference.weights.relatives import fit_relative, folded_in_words
from dec_export.reference.weights.several_files import (
    check_start_values,
    find_canonicalizers,
    fit_published,
    read_canonicalizers,
)


@dataclass(frozen=True)
class WholeModel:
    """The weights of a whole model under the published keys.

    origin: the files that the weights come from, and their own names.
    detail: the end of a sentence about the weights, as "39 vit.pth and 39 vit_surrogate.pth; dropped: ... (2)".
    """

    weights: Weights
    origin: Origin
    detail: str


def read_whole_model(
    recipe: Recipe, checkpoint: Checkpoint, expected: Weights, canonicalizers: Path | None = None
) -> WholeModel:
    """Return the weights of the recipe's model in a checkpoint, and in the canonicalizers' file if they have their own.

    expected: the model's weights before the checkpoint is loaded, under the published keys.
    canonicalizers: that file; None means the one beside the checkpoint, if there is one.
    Raises CheckpointError for start values of another run, and for a second file that the
    recipe or the checkpoint has no use for.
    """
    path, names, weights, dropped = checkpoint.path, {}, with_our_keys(checkpoint.state), ""
    if SOFT_EQUIVARIANCE.recognises(checkpoint):
        found = fit_relative(recipe, SOFT_EQUIVARIANCE.read(checkpoint), expected, path)
        names, weights, dropped = dict(found.names), found.weights, folded_in_words(path) + found.dropped_in_words
    elif TRANSFORMERS.recognises(checkpoint):
        found = fit_published(recipe, TRANSFORMERS.read(checkpoint), expected, path)
        names, weights, dropped = dict(found.names), found.weights, found.dropped_in_words
        check_start_values(recipe, path)
    second, note = _second_file(recipe, path, weights, canonicalizers)
    if second is not None:
        weights = {**weights, **read_canonicalizers(second)}
    files = path.name if second is None else f"{path.name} and {second.name}"
    return WholeModel(weights, Origin(path, names, second), f"{files}{dropped}{note}")


def _second_file(recipe: Recipe, path: Path, weights: Weights, given: Path | None) -> tuple[Path | None, str]:
    """Return the canonicalizers' file, or None, and what the sentence about the weights says of a file left out."""
    has_canonicalizers = any(key.startswith("DEM.") for key in weights)
    wanted = recipe.deep_equilibrium is not None
    if given is not None and has_canonicalizers:
        raise CheckpointError(
            f"'{path}' holds canonicalizers already, and --canonicalizer-checkpoint names others in '{given}': leave "
            "--canonicalizer-checkpoint out."
        )
    if given is not None and not wanted:
        raise CheckpointError(
            f"Recipe '{recipe.name}' has no deep equilibrium canonicalizers, and --canonicalizer-checkpoint names a "
            f"file of them, '{given}': leave it out, or import the recipe of the run that wrote it."
        )
    beside = None if has_canonicalizers else find_canonicalizers(path)
    if given is None and beside is not None and not wanted:
        return None, f"; {beside.name} beside it is not used, as the recipe has no canonicalizers"
    return given or beside, ""
