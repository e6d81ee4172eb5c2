"""How much one step f of a canonicalizer magnifies a small change of phi, at the solution.

A solve repeats f six times, so rounding grows by about the sixth power of this; it explains the noise floor.
See docs/semantics.md, section 9.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dec_export.reference.model import DecModel
from dec_export.reference.warp import Phi

# Central differences in float64 lose a third of the digits to truncation and a third to rounding at this step.
_STEP = 1e-5
_DIRECTIONS = 3
_SWEEPS = 2


def amplification(model: DecModel, image: Tensor, phis: list[Phi], seed: int = 0) -> dict[str, dict[str, float]]:
    """For each layer, || f(z + h d) - f(z - h d) || / (2 h) for unit directions d, in float64.

    model: in float64; image (B, 3, H, W); phis: the solutions. `random` is the median over samples and seeded random
    directions. `largest` is the largest value met when each direction is then replaced by its own image under the
    derivative, twice, which turns it towards the direction that grows fastest.
    """
    result: dict[str, dict[str, float]] = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for layer, (f, phi) in enumerate(zip(model.DEM.step_functions(image), phis, strict=True)):
            gains = torch.stack([_gains(f, phi.flatten(), generator) for _ in range(_DIRECTIONS)])
            result[f"phi_{layer}"] = {"random": gains[:, 0].median().item(), "largest": gains.max().item()}
    return result


def _gains(f: Any, z: Tensor, generator: torch.Generator) -> Tensor:
    """Growth of one random direction, then of its images: (1 + sweeps, B)."""
    direction = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    gains = []
    for _ in range(1 + _SWEEPS):
        unit = direction / direction.norm(dim=1, keepdim=True)
        direction = (f(z + _STEP * unit) - f(z - _STEP * unit)) / (2 * _STEP)
        gains.append(direction.norm(dim=1))
    return torch.stack(gains)
