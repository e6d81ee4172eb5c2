"""Seeded local changes of scale, the same for every engine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dec_export.reference.warp import Phi, warp

STRENGTH = 0.2
COARSE_RESOLUTION = 8


def local_scale(
    image: NDArray[np.float32], seed: int | tuple[int, ...] = 0, strength: float = STRENGTH
) -> NDArray[np.float32]:
    """Warp (N, C, H, W) by phi_x, phi_y ~ U(0, strength) with R = 8 (dec-semantics section 7).

    Drawn and computed in float64 and rounded once, so that every engine sees the same bits.
    """
    generator = np.random.default_rng(seed)
    shape = (len(image), COARSE_RESOLUTION, COARSE_RESOLUTION - 1)
    phi = Phi(*(torch.from_numpy(generator.uniform(0, strength, shape)) for _ in range(2)))
    return warp(phi, torch.from_numpy(image).double()).float().numpy()
