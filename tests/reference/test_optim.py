"""The Optim baseline descends an energy, and training differentiates through its steps."""

from __future__ import annotations

from itertools import pairwise

import torch

from dec_export.reference.model import DecModel
from dec_export.reference.optim import ENERGY_SIZE, OptimCanonicalizer, with_optim
from dec_export.reference.warp import Phi
from tests.conftest import SMALL_CANONICALIZER, photographs


def small(steps: int, rate: float) -> OptimCanonicalizer:
    torch.manual_seed(0)
    return OptimCanonicalizer(SMALL_CANONICALIZER, steps=steps, learning_rate=rate).double()


def image(size: int = 64) -> torch.Tensor:
    return torch.from_numpy(photographs(size, 2)).double()


def energy(canonicalizer: OptimCanonicalizer, phis: list[Phi], pixels: torch.Tensor) -> torch.Tensor:
    resized = torch.nn.functional.interpolate(
        pixels, size=(ENERGY_SIZE, ENERGY_SIZE), mode="bilinear", align_corners=True
    )
    with torch.no_grad():
        return canonicalizer.energy(phis, resized)


def test_every_step_lowers_the_energy() -> None:
    energies = [energy(small(n, 0.05), small(n, 0.05).eval()(image()), image()) for n in range(4)]
    for before, after in pairwise(energies):
        assert (after < before).all()


def test_it_starts_at_the_identity() -> None:
    for phi in small(0, 0.1).eval()(image()):
        assert torch.equal(phi.x, torch.ones_like(phi.x))


def test_samples_do_not_mix() -> None:
    both = small(2, 0.1).eval()(image())
    for i in range(2):
        alone = small(2, 0.1).eval()(image()[i : i + 1])
        torch.testing.assert_close(both[0].x[i], alone[0].x[0], rtol=1e-9, atol=1e-9)


def test_training_differentiates_through_the_steps() -> None:
    """A parameter of the energy moves phi as its gradient says.

    On a smooth image: where a coordinate crosses a pixel, the derivative of bilinear sampling jumps.
    """
    pixels = torch.nn.functional.avg_pool2d(image(), 9, 1, 4)
    canonicalizer = small(2, 0.1).train()
    weight = canonicalizer.energies[0][0].conv.weight  # type: ignore[index,union-attr]
    phi = canonicalizer(pixels)[0]
    (gradient,) = torch.autograd.grad((phi.x**2).sum(), [weight])
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * direction
        values.append((canonicalizer(pixels)[0].x ** 2).sum().item())
        with torch.no_grad():
            weight -= sign * 1e-5 * direction
    difference = (values[0] - values[1]) / 2e-5
    assert abs(difference - (gradient * direction).sum().item()) <= 1e-4 * abs(difference)


def test_inference_leaves_no_graph(small_model: DecModel) -> None:
    model = with_optim(small_model)
    with torch.inference_mode():
        output = model(torch.from_numpy(photographs(160, 1)))
    assert not output.logits.requires_grad
    assert small_model.DEM.__class__.__name__ == "Canonicalizer", "the original keeps its own"
