"""How far the maps of patches are from equivariant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dec_export.reference.groups import ACTIONS, Similarity

from .learner import Learner


class MapError(NamedTuple):
    """How far a map f is from equivariant under an action g, mean over images, rounded to four decimals.

    error: |f(g x) - rho_g f(x)| / |f(x)|, with root mean squares over the patches that g covers. centred: the same
    difference over the spread of f's patches about their mean, because a large constant would hide every change.
    cosine: the cosine between corresponding patches, mean over patches.
    """

    error: float
    centred: float
    cosine: float


# For the name of every action, the error of every block's map.
ErrorsByAction = Mapping[str, Sequence[MapError]]


@torch.no_grad()
def equivariance_errors(learner: Learner, inputs: Tensor, batch: int = 100) -> dict[str, list[MapError]]:
    """For every action and every block, how far the block's map of inputs (N, 3, H, W) is from equivariant."""
    learner.eval()
    parts = torch.split(inputs, batch)
    maps = [torch.cat(found) for found in zip(*map(learner.blocks, parts), strict=True)]
    errors: dict[str, list[MapError]] = {}
    for name, g in ACTIONS.items():
        acted = [torch.cat(found) for found in zip(*(learner.blocks(g.act(x)) for x in parts), strict=True)]
        errors[name] = [map_error(g, *pair) for pair in zip(acted, maps, strict=True)]
    return errors


def map_error(g: Similarity, found: Tensor, original: Tensor) -> MapError:
    """The error of the maps (N, C, h, w) of g x, which are `found`, and of x, which are `original`."""
    covered = g.covers(*original.shape[-2:])
    expected, actual = (maps[..., covered].double() for maps in (g.act(original), found))
    error, norm, spread = (
        values.square().flatten(1).sum(dim=1).div(values.shape[-1]).sqrt()
        for values in (
            actual - expected,
            original.flatten(2).double(),
            original.flatten(2).double() - original.double().mean(dim=(0, 2, 3))[:, None],
        )
    )
    cosine = torch.cosine_similarity(actual, expected, dim=1).mean(dim=1)
    return MapError(*(round(float(values.mean()), 4) for values in (error / norm, error / spread, cosine)))


def mean_error(errors: ErrorsByAction, block: int) -> MapError:
    """The mean over all actions of the error of one block's map, rounded to four decimals."""
    found = [blocks[block] for blocks in errors.values()]
    return MapError(*(round(float(np.mean(values)), 4) for values in zip(*found, strict=True)))


def named_map_error(error: MapError) -> dict[str, float]:
    """The error under the keys map_error, map_centred and map_cosine, as logs and reports have it."""
    return {f"map_{name}": value for name, value in error._asdict().items()}
