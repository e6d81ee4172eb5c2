"""The copying of weights under the published keys into a model, which takes all of them or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.reference.model import DecModel
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layouts.discrete import check_candidates
from dec_export.reference.weights.layouts.optim import refuse_energies


@dataclass(frozen=True)
class Origin:
    """The files from which a model's weights come.

    path: the file of the backbone, or of the whole model.
    names: the file's own keys of weights that have another key here.
    canonicalizers: the file of the canonicalizers, if they have one of their own.
    """

    path: Path
    names: Mapping[str, str] = field(default_factory=dict)
    canonicalizers: Path | None = None

    def file_of(self, key: str) -> Path:
        """Return the file that holds, or should hold, the weight under a published key."""
        return self.canonicalizers if self.canonicalizers is not None and key.startswith("DEM.") else self.path

    def name_of(self, key: str) -> str:
        """Return the file's own key of the weight under a published key."""
        own = key.removeprefix("DEM.") if self.file_of(key) != self.path else key
        return self.names.get(key, own)


def published_state_dict(model: DecModel) -> Weights:
    """Return the model's state under the published keys.

    Keys of the canonicalizers start with `DEM.`, those of a head with `decoder.`; the backbone's have no prefix.
    """
    return {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}


def load_weights(model: DecModel, weights: Weights, origin: Path | Origin) -> None:
    """Copy weights under the published keys into the model.

    origin: the file, or the files, that the weights come from.
    Raises CheckpointError, with the first differing keys and shapes, unless all weights fit; nothing is copied then.
    """
    origin = origin if isinstance(origin, Origin) else Origin(origin)
    refuse_energies(weights, origin.path)
    check_candidates(model.recipe, weights, origin.path)
    copy_weights(published_state_dict(model), weights, origin, model.recipe.name)


def copy_weights(expected: Weights, weights: Weights, origin: Path | Origin, recipe: str) -> None:
    """Copy weights in place into those of the same keys; raise CheckpointError unless all of them fit.

    origin: the file, or the files, that the weights come from. recipe: the name of the recipe in messages.
    """
    origin = origin if isinstance(origin, Origin) else Origin(origin)
    differences = _differences(expected, weights, origin)
    if differences:
        shown = "; ".join(sentence for _, sentence in differences[:3])
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(f"'{differences[0][0]}' does not fit recipe '{recipe}': {shown}{more}.")
    converted = {
        key: _convert(origin.name_of(key), weights[key], target, origin.file_of(key))
        for key, target in expected.items()
    }
    with torch.no_grad():
        for key, target in expected.items():
            target.copy_(converted[key])


def _convert(key: str, found: Tensor, target: Tensor, path: Path) -> Tensor:
    check_plain(key, found, target, path)
    converted = found.to(target.dtype)
    if not torch.isfinite(converted).all():
        raise CheckpointError(f"'{path}' holds NaN, or infinity in {target.dtype}, in '{key}'.")
    return converted


def check_plain(key: str, found: Tensor, target: Tensor, path: Path) -> None:
    """Raise CheckpointError unless `found` holds plain numbers on the CPU, of the kind (real, whole) of `target`."""
    plain = found.layout is torch.strided and not found.is_quantized and found.device.type == "cpu"
    if not plain or found.is_floating_point() != target.is_floating_point() or found.is_complex():
        kind = f"{str(found.layout).removeprefix('torch.')} {str(found.dtype).removeprefix('torch.')}"
        raise CheckpointError(f"'{path}' holds '{key}' as {kind}, expected plain numbers like {target.dtype}.")


def _differences(expected: Weights, found: Weights, origin: Origin) -> list[tuple[Path, str]]:
    """Return the file and the description of every difference, shapes first."""
    has_canonicalizer, finds_one = (any(key.startswith("DEM.") for key in keys) for keys in (expected, found))
    if has_canonicalizer and not finds_one:
        second = ": name the second file with --canonicalizer-checkpoint" if origin.names else ""
        return [(origin.path, f"it has no canonicalizer (no key starts with 'DEM.'), only a backbone{second}")]
    shapes = {
        key: f"is {_shape(found[key])}, expected {_shape(value)}{_cause(key)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    }
    missing = {key: f"{_shape(expected[key])} is missing" for key in expected if key not in found}
    extra = {key: f"{_shape(found[key])} is not expected" for key in found if key not in expected}
    return [
        (origin.file_of(key), f"'{origin.name_of(key)}' {what}")
        for group in (shapes, missing, extra)
        for key, what in group.items()
    ]


def _cause(key: str) -> str:
    return " (it was trained on images of another size)" if key == "pos_embed" else ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
