"""Numbers that are not finite must not become an answer that looks right.

A warp reads an image at coordinates, and a coordinate that is NaN is clamped to a corner of the image by every
implementation of grid sampling: the result is finite, and wrong. One pixel that is NaN or infinite makes the solved phi
NaN, hence the coordinates, and the answer looks right and is wrong. So the outputs of an image that is not finite, or
whose solved phi is not, are NaN. For all other images nothing changes, not by a bit. See docs/semantics.md, section 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dec_export.reference.warp import Phi


def finite_samples(image: Float[Tensor, "batch _ _ _"], phis: Sequence[Phi]) -> Bool[Tensor, " batch"]:
    """Return which images are finite and have finite phis.

    A sum of magnitudes is finite only if all of its terms are finite. It is compared with the largest number of its
    format instead of being tested by `isfinite`, since a comparison is one operator that every runtime has, and NaN
    fails it.
    """
    total = image.abs().flatten(1).sum(dim=1)
    for phi in phis:
        total = total + phi.flatten().abs().sum(dim=1).to(total.dtype)
    return total <= torch.finfo(total.dtype).max


def nan_unless(finite: Bool[Tensor, " batch"], values: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Return `values` for the samples that are finite, and NaN for the other samples."""
    return torch.where(finite.view(-1, *[1] * (values.ndim - 1)), values, torch.nan)


def guarded(finite: Bool[Tensor, " batch"], phis: Sequence[Phi]) -> list[Phi]:
    """Apply `nan_unless` to the two maps of every phi."""
    return [Phi(nan_unless(finite, phi.x), nan_unless(finite, phi.y)) for phi in phis]
