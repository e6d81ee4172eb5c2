"""Seeded local changes of scale, the same for every engine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dec_export.reference.warp import Phi, warp

STRENGTH = 0.2
COARSE_RESOLUTION = 8


def local_scale_phi(count: int, seed: int | tuple[int, ...] = 0, strength: float = STRENGTH) -> Phi:
    """`count` warps of phi_x, phi_y ~ U(0, strength) with R = 8 (dec-semantics section 7), float64."""
    generator = np.random.default_rng(seed)
    shape = (count, COARSE_RESOLUTION, COARSE_RESOLUTION - 1)
    return Phi(*(torch.from_numpy(generator.uniform(0, strength, shape)) for _ in range(2)))


def local_scale(
    image: NDArray[np.float32], seed: int | tuple[int, ...] = 0, strength: float = STRENGTH
) -> NDArray[np.float32]:
    """Warp (N, C, H, W) by `local_scale_phi`.

    Drawn and computed in float64 and rounded once, so that every engine sees the same bits.
    """
    phi = local_scale_phi(len(image), seed, strength)
    return warp(phi, torch.from_numpy(image).double()).float().numpy()
