"""The mixing weights of Anderson acceleration, computed without a linear solver.

The reference solves [[0, 1'], [1, G G' + lambda I]] [nu; alpha] = [1; 0]. With A = G G' + lambda I that is
alpha = A^-1 1 / (1' A^-1 1), and A = R' R for the triangular factor R of the tall matrix [G'; sqrt(lambda) I].
Modified Gram-Schmidt on that matrix, which has at most six columns, computes R row by row with products and sums only.
With lambda = 1e-4 the condition number of A = G G' + lambda I may reach 1e5, and that of the tall matrix is its square
root, so float32 keeps three more digits than a Cholesky factorisation of A (`tests/lowering/test_lowering.py` measures
it).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def mixing_weights(differences: Float[Tensor, "batch n d"], regularisation: float) -> Float[Tensor, "batch n"]:
    """Return the weights of `reference.anderson.mixing_weights`, to which they are equal in exact arithmetic."""
    columns = _tall_columns(differences, regularisation)
    # w = R^-T 1 is computed together with the rows of R, because row i of R' w = 1 needs R only up to column i.
    ones: list[Tensor] = []
    factor: list[list[Tensor]] = []
    for i in range(len(columns)):
        norm = columns[i].square().sum(dim=1, keepdim=True).sqrt()
        unit = columns[i] / norm
        row = [norm]
        for j in range(i + 1, len(columns)):
            row.append((unit * columns[j]).sum(dim=1, keepdim=True))
            columns[j] = columns[j] - row[-1] * unit
        factor.append(row)
        known = sum((factor[p][i - p] * ones[p] for p in range(i)), torch.zeros_like(norm))
        ones.append((1 - known) / norm)
    weights = _back_substitute(factor, ones)
    return weights / weights.sum(dim=1, keepdim=True)


def _tall_columns(differences: Tensor, regularisation: float) -> list[Tensor]:
    """Return the columns (B, d + n) of [G'; sqrt(lambda) I]."""
    batch, count, _ = differences.shape
    root = math.sqrt(regularisation) * torch.eye(count, dtype=differences.dtype, device=differences.device)
    return [torch.cat([differences[:, i], root[i].expand(batch, count)], dim=1) for i in range(count)]


def _back_substitute(factor: list[list[Tensor]], right_hand_side: list[Tensor]) -> Tensor:
    """Solve R x = b for an upper triangular R, whose rows are given from the diagonal on; return x (B, n)."""
    count = len(factor)
    solution: list[Tensor] = [torch.empty(0)] * count
    for i in reversed(range(count)):
        rest = right_hand_side[i]
        for j in range(i + 1, count):
            rest = rest - factor[i][j - i] * solution[j]
        solution[i] = rest / factor[i][0]
    return torch.cat(solution, dim=1)
