"""Anderson acceleration, per sample, as the published models run it.

Source: D. G. Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 12 (1965); the
regularised bordered system and the choice of the best iterate follow the solver that the published models
were trained with (docs/semantics.md, section 4), which `tests/reference/test_anderson.py` runs beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

# A function f that maps iterates (batch, n) to their images (batch, n).
StepFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AndersonOptions:
    """Settings of the solver; the defaults are those of the published models.

    max_iter: the largest number of evaluations of f.
    memory: the number of iterates that are mixed.
    regularisation: the factor lambda of the penalty on the mixing weights.
    damping: the share of the images in a mixed iterate; the remaining share is that of the iterates.
    tolerance: the residual below which a sample counts as solved.
    """

    max_iter: int = 5
    memory: int = 6
    regularisation: float = 1e-4
    damping: float = 1.0
    tolerance: float = 1e-6


@dataclass
class AndersonResult:
    """The result of one run of the solver.

    value: for each sample, the image under f of the iterate with the smallest residual.
    residual: the smallest residual of each sample, the 2-norm of f(z) - z; infinity if no residual was finite.
    residuals: the residual of every accelerated iterate.
    iterates, images: every z and f(z) in the order of evaluation.
    """

    value: Float[Tensor, "batch n"]
    residual: Float[Tensor, " batch"]
    residuals: list[Float[Tensor, " batch"]] = field(default_factory=list)
    iterates: list[Float[Tensor, "batch n"]] = field(default_factory=list)
    images: list[Float[Tensor, "batch n"]] = field(default_factory=list)


def mixing_weights(differences: Float[Tensor, "batch n d"], regularisation: float) -> Float[Tensor, "batch n"]:
    """Return the weights of sum one that minimise || weights . differences ||^2 + regularisation ||weights||^2.

    `differences` holds f(z) - z of the n remembered iterates (docs/semantics.md, section 4). The weights are alpha in
    the bordered system [[0, 1'], [1, G G' + lambda I]] [nu; alpha] = [1; 0].
    """
    batch, count, _ = differences.shape
    system = differences.new_zeros(batch, count + 1, count + 1)
    system[:, 0, 1:] = system[:, 1:, 0] = 1
    gram = differences @ differences.transpose(1, 2)
    system[:, 1:, 1:] = gram + regularisation * torch.eye(count).to(differences)
    right_hand_side = differences.new_zeros(batch, count + 1)
    right_hand_side[:, 0] = 1
    solution: Tensor = torch.linalg.solve(system, right_hand_side)
    return solution[:, 1:]


def anderson(f: StepFunction, start: Float[Tensor, "batch n"], options: AndersonOptions) -> AndersonResult:
    """Look for a fixed point of `f` from `start`.

    The first two iterates are `start` and its image; each further iterate mixes the last `memory` iterates. The loop
    ends early only when the largest residual of the batch is below the tolerance. With `max_iter` of 1 or 2 nothing is
    mixed: the value is `start`, as in the published code, which evaluates f without using the results.
    """
    if options.max_iter <= 2:
        return AndersonResult(start, torch.full_like(start[:, 0], torch.inf))
    iterates = [start, f(start)]
    images = [iterates[1], f(iterates[1])]
    result = AndersonResult(start, torch.full_like(start[:, 0], torch.inf), [], iterates, images)
    for k in range(2, options.max_iter):
        # Order within the window does not matter: the mixing is symmetric in its columns.
        window_z = torch.stack(iterates[-options.memory :], dim=1)
        window_f = torch.stack(images[-options.memory :], dim=1)
        weights = mixing_weights(window_f - window_z, options.regularisation)[:, None]
        mixed = options.damping * (weights @ window_f) + (1 - options.damping) * (weights @ window_z)
        iterates.append(mixed[:, 0])
        images.append(f(iterates[k]))
        residual = (images[k] - iterates[k]).norm(dim=1)
        better = residual < result.residual
        result.value = torch.where(better[:, None], images[k], result.value)
        result.residual = torch.where(better, residual, result.residual)
        result.residuals.append(residual)
        if residual.max() < options.tolerance:
            break
    return result


def solve(f: StepFunction, start: Float[Tensor, "batch n"], options: AndersonOptions) -> Float[Tensor, "batch n"]:
    """Return the fixed point of `f` as the published models compute it, with one more step after the solver.

    The iterations run without gradient; the gradient flows through the last step alone (the one-step, or
    phantom, gradient), in training and in evaluation alike.
    """
    with torch.no_grad():
        best = anderson(f, start, options).value
    return f(best)
