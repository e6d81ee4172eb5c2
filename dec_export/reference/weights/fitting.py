"""The copying of weights under the published keys into a model, which takes all of them or none."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.reference.model import DecModel
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layouts.discrete import check_candidates
from dec_export.reference.weights.layouts.optim import refuse_energies


def published_state_dict(model: DecModel) -> Weights:
    """Return the model's state under the published keys.

    Keys of the canonicalizers start with `DEM.`, those of a head with `decoder.`; the backbone's have no prefix.
    """
    return {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}


def load_weights(model: DecModel, weights: Weights, path: Path) -> None:
    """Copy weights under the published keys into the model.

    Raises CheckpointError, with the first differing keys and shapes, unless all weights fit; nothing is copied then.
    """
    refuse_energies(weights, path)
    check_candidates(model.recipe, weights, path)
    copy_weights(published_state_dict(model), weights, path, model.recipe.name)


def copy_weights(expected: Weights, weights: Weights, path: Path, recipe: str) -> None:
    """Copy weights in place into those of the same keys; raise CheckpointError unless all of them fit.

    recipe: the name of the recipe in messages.
    """
    differences = _differences(expected, weights)
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise CheckpointError(f"'{path}' does not fit recipe '{recipe}': {shown}.")
    converted = {key: _convert(key, weights[key], target, path) for key, target in expected.items()}
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
