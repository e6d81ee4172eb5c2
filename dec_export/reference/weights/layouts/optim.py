"""Energies of the Optim baseline, which is known by the convolutions `conv` of its blocks.

Source: the published implementation of arXiv 2508.14187, trained with `deep_equlibrium_mode: false`. Its program stores
them in a file of their own, `*_surrogate.pth`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dec_export.errors import CheckpointError
from dec_export.reference.weights.files import Weights

_PREFIX = "DEM."
_ENERGY = re.compile(r"(?:DEM\.)?module_list\.[0-9]{1,4}\.[0-9]{1,4}\.conv\.weight")


def holds_energies(keys: Iterable[str]) -> bool:
    """Return whether these are the keys of energies, bare or in a whole model."""
    return any(_ENERGY.fullmatch(key) for key in keys)


def refuse_energies(weights: Weights, path: Path) -> None:
    """Raise CheckpointError for the weights of a model that canonicalizes by optimisation."""
    if holds_energies(weights):
        raise CheckpointError(
            f"'{path}' was trained to canonicalize by optimisation (deep_equlibrium_mode: false), which needs "
            "gradients at inference and cannot be exported: compare it with 'dec-export bench --baseline optim=FILE'."
        )


def energies_in(weights: Weights, path: Path) -> Weights:
    """Return the energies among the weights under bare keys, `module_list.*`; raise CheckpointError without any."""
    if not holds_energies(weights):
        found = ", ".join(list(weights)[:3])
        raise CheckpointError(
            f"'{path}' holds no energies of Optim: expected keys such as 'module_list.0.0.conv.weight', found {found}: "
            "name the *_surrogate.pth of a model that was trained with deep_equlibrium_mode: false."
        )
    bare = {key.removeprefix(_PREFIX): value for key, value in weights.items()}
    return {key: value for key, value in bare.items() if key.startswith("module_list.")}
