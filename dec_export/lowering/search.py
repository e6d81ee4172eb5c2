"""Binary search by counting: the left insertion point of v among sorted knots is the number of knots below v.

ONNX has no searchsorted. Comparing all pairs and counting gives the same result for sorted knots.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dec_export.reference.warp import MIN_INTERVAL


def invert_rows(knots: Float[Tensor, "batch rows M"]) -> Float[Tensor, "batch rows M"]:
    """Compute `reference.warp.invert_rows` for knots and positions in [-1, 1] in place of [0, 1]."""
    count = knots.shape[-1]
    uniform = torch.linspace(-1, 1, count, dtype=torch.float64).to(knots)
    right = (knots[..., None, :] < uniform[:, None]).sum(dim=-1).clamp(max=count - 1)
    left = (right - 1).clamp(min=0)
    knot_left, knot_right = knots.gather(-1, left), knots.gather(-1, right)
    weight = (uniform - knot_left) / (knot_right - knot_left).clamp(min=2 * MIN_INTERVAL)
    return (1 - weight) * uniform[left] + weight * uniform[right]
