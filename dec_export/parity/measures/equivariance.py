"""How far the feature map of a block is from turning, flipping and scaling with the image, on reference and engine.

For f1, the model up to the block, and each g of `reference.groups.ACTIONS`: the relative error
|| f1(g x) - rho_g f1(x) || / || f1(x) ||, and the cosine between the two at each patch. Source: arXiv 2603.06693.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dec_export.parity.measures.invariance import share
from dec_export.parity.metrics import Array
from dec_export.reference.groups import ACTIONS, Similarity

# The error is a property of the model on photographs, not of each photograph: a few show it.
IMAGES = 4

# Images (N, 3, H, W) float32 -> the maps (N, C, h, w) of every block that is shown, by its number.
Maps = Callable[[NDArray[np.float32]], Mapping[int, Tensor]]


@dataclass(frozen=True)
class Terms:
    """Of one block and one g, each image's term, (N,) float64.

    error: the relative error; its norms are root mean squares over patches, as fewer may be compared than f1(x) has.
    unaligned: what it would be of a map that does not follow the image, that is with f1(x) for rho_g f1(x). cosine: the
    mean over the patches that are compared.
    """

    error: Array
    unaligned: Array
    cosine: Array


# By block, then by the name of g; without those that leave nothing to compare.
Equivariance = dict[int, dict[str, Terms]]


def move(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """g x for every g: images (N, 3, H, W), computed in float64 and rounded once, the same bits for every engine."""
    exact = torch.from_numpy(images).double()
    return {name: g.act(exact).float().contiguous().numpy() for name, g in ACTIONS.items()}


def measure(maps: Maps, images: NDArray[np.float32], moved: Mapping[str, NDArray[np.float32]]) -> Equivariance:
    """The terms of every block that `maps` shows. `moved` is what `move` makes of the images."""
    here = maps(images)
    found: Equivariance = {place: {} for place in here}
    for name, copies in moved.items():
        there = maps(copies)
        for place, features in here.items():
            if ACTIONS[name].covers(*features.shape[-2:]).any():
                found[place][name] = compare(ACTIONS[name], features, there[place])
    return found


def compare(g: Similarity, features: Tensor, features_moved: Tensor) -> Terms:
    """The terms of maps f1(x) and f1(g x), both (N, C, h, w).

    Where a scale below 1 brings in what lies outside the image, there is nothing to compare: such patches are left out.
    One patch at least must remain.
    """
    features, features_moved = features.double(), features_moved.double()
    used = g.covers(*features.shape[-2:])
    aligned, found, still = (values[..., used] for values in (g.act(features), features_moved, features))
    size = _norm(features.flatten(2))
    return Terms(
        error=_share(_norm(found - aligned), size),
        unaligned=_share(_norm(found - still), size),
        cosine=torch.cosine_similarity(found, aligned, dim=1).mean(dim=1).numpy(),
    )


def _norm(values: Tensor) -> Tensor:
    """Root mean square over the patches of their norms: (N, C, patches) -> (N,)."""
    return values.square().sum(dim=1).mean(dim=1).sqrt()


def _share(difference: Tensor, size: Tensor) -> Array:
    """A map that is zero has no error when it stays so."""
    return torch.where(difference == 0, difference, difference / size).numpy()


@dataclass(frozen=True)
class References:
    """What engines are compared with: images, their copies g x, and the terms in float64 and in the engine's format."""

    images: NDArray[np.float32]
    moved: dict[str, NDArray[np.float32]]
    fp64: Equivariance
    same: Equivariance


def judge(references: References, engine: Equivariance, tolerance: float, factor: float) -> dict[str, Any]:
    """What a report says of every block that the engine shows, by its number as text, and of every g.

    Of the relative error and of the cosine: deviation, |engine - reference| / |reference|, and bound, the largest that
    passes, which is `tolerance`, or what rounding explains: `factor` times what the reference's terms change in the
    engine's precision.
    """
    return {
        str(place): {
            name: _judge(references.fp64[place][name], references.same[place][name], terms, tolerance, factor)
            for name, terms in by_action.items()
        }
        for place, by_action in sorted(engine.items())
        if place in references.fp64
    }


def _judge(fp64: Terms, same: Terms, engine: Terms, tolerance: float, factor: float) -> dict[str, float]:
    def compared(kind: str, prefix: str) -> dict[str, float]:
        true, narrow, found = (np.asarray(getattr(terms, kind)) for terms in (fp64, same, engine))
        size = abs(float(true.mean()))
        noise = factor * share(float(np.abs(narrow - true).mean()), size)
        return {
            f"{prefix}reference": float(true.mean()),
            f"{prefix}engine": float(found.mean()),
            f"{prefix}deviation": share(abs(float(found.mean() - true.mean())), size),
            f"{prefix}bound": float(np.maximum(tolerance, noise)),
        }

    return {**compared("error", ""), **compared("cosine", "cosine_"), "unaligned": float(fp64.unaligned.mean())}
