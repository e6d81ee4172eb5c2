"""Anderson acceleration is compared with torchdeq, with which the published models were trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchdeq import get_deq
from torchdeq.solver import get_solver

from dec_export.reference.anderson import AndersonOptions, anderson, mixing_weights, solve

F64 = torch.float64
SIZE, BATCH = 12, 3


def affine_map(gain: float, seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """z -> sin(A z) + b with || A || = gain: contractive below one, not contractive above; and a start."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=F64)
    matrix *= gain / torch.linalg.matrix_norm(matrix, 2)
    shift = torch.randn(SIZE, generator=generator, dtype=F64)
    return lambda z: torch.sin(z @ matrix.T) + shift, torch.ones(BATCH, SIZE, dtype=F64) * torch.arange(1, 4)[:, None]


@pytest.mark.parametrize("gain", [0.8, 3.0], ids=["contractive", "not contractive"])
@pytest.mark.parametrize("max_iter", range(3, 16))
def test_every_step_agrees_with_torchdeq(gain: float, max_iter: int) -> None:
    """With max_iter = 3, 4, ... every step is compared; from 8 on, the memory of six drops its oldest pair."""
    f, start = affine_map(gain)
    seen: list[Tensor] = []
    expected, _, info = get_solver("anderson")(
        lambda z: seen.append(z.clone()) or f(z), start, max_iter=max_iter, tol=1e-6, m=6, lam=1e-4, tau=1.0
    )
    result = anderson(f, start, AndersonOptions(max_iter=max_iter))
    for mine, theirs in zip(result.iterates, seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.value, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.residual, info["abs_lowest"], rtol=0, atol=1e-9)


def test_damping_agrees_with_torchdeq() -> None:
    f, start = affine_map(0.9)
    expected, _, _ = get_solver("anderson")(f, start, max_iter=7, tol=1e-6, m=6, lam=1e-4, tau=0.6)
    torch.testing.assert_close(anderson(f, start, AndersonOptions(max_iter=7, damping=0.6)).value, expected)


@pytest.mark.parametrize("gain", [0.8, 3.0])
def test_solve_is_the_published_use_of_torchdeq_with_its_extra_step(gain: float) -> None:
    f, start = affine_map(gain)
    deq = get_deq(ift=False, f_solver="anderson", f_max_iter=5, f_tol=1e-6)
    assert deq.training, "the published models hold it in a list, so eval() never reaches it"
    outputs, _ = deq(f, start)
    torch.testing.assert_close(solve(f, start, AndersonOptions()), outputs[-1], rtol=0, atol=1e-10)


def test_the_gradient_flows_through_the_last_step_alone() -> None:
    weight = torch.tensor(0.4, dtype=F64, requires_grad=True)

    def f(z: Tensor) -> Tensor:
        return torch.cos(weight * z)

    start = torch.ones(1, 4, dtype=F64)
    best = anderson(f, start, AndersonOptions()).value.detach()
    (expected,) = torch.autograd.grad(f(best).sum(), weight)
    (found,) = torch.autograd.grad(solve(f, start, AndersonOptions()).sum(), weight)
    torch.testing.assert_close(found, expected)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4.0))
@settings(max_examples=30, deadline=None)
def test_a_fixed_point_stays_fixed(seed: int, gain: float) -> None:
    f, start = affine_map(gain, seed)
    # Shifting the map makes any point a fixed one.
    point = start + 0.5

    def shifted(z: Tensor) -> Tensor:
        return f(z) + (point - f(point))

    torch.testing.assert_close(solve(shifted, point, AndersonOptions()), point, rtol=0, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4.0))
@settings(max_examples=30, deadline=None)
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(seed: int, gain: float) -> None:
    """The early end of the loop couples the batch on purpose; without it, samples are independent."""
    f, start = affine_map(gain, seed)
    options = AndersonOptions(max_iter=9, tolerance=0)
    together = solve(f, start, options)
    alone = torch.cat([solve(f, z[None], options) for z in start])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-7)


def test_it_converges_on_a_contraction_and_ends_early() -> None:
    f, start = affine_map(0.8)
    result = anderson(f, start, AndersonOptions(max_iter=60))
    assert len(result.residuals) < 58
    assert result.residual.max() < 1e-6
    torch.testing.assert_close(f(result.value), result.value, rtol=0, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_mixing_weights_are_the_regularised_minimum(seed: int, count: int, batch: int) -> None:
    differences = torch.randn(batch, count, 20, dtype=F64, generator=torch.Generator().manual_seed(seed))
    weights = mixing_weights(differences, 1e-4)
    torch.testing.assert_close(weights.sum(1), torch.ones(batch, dtype=F64))
    # Optimality: the gradient of the objective is the same for every weight, as the constraint allows no other.
    mixed = (weights[:, None] @ differences)[:, 0]
    gradient = (differences @ mixed[..., None])[..., 0] + 1e-4 * weights
    torch.testing.assert_close(gradient, gradient.mean(1, keepdim=True).expand_as(gradient), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("max_iter", [1, 2])
def test_one_or_two_iterations_are_one_step_as_in_the_published_use_of_torchdeq(max_iter: int) -> None:
    f, start = affine_map(0.8)
    outputs, _ = get_deq(ift=False, f_solver="anderson", f_max_iter=max_iter, f_tol=1e-6)(f, start)
    found = solve(f, start, AndersonOptions(max_iter=max_iter))
    assert torch.equal(found, outputs[-1])
    assert torch.equal(found, f(start))
    result = anderson(f, start, AndersonOptions(max_iter=max_iter))
    assert not result.residuals
    assert not result.iterates
