"""The Optim baseline descends an energy, and training differentiates through its steps.

`data/published_optim.json` holds what the public code of arXiv 2508.14187 (`Adapter` and `inner_optimization`) computes
in float64 for weights and images that are formulas.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dec_export.errors import CheckpointError, RecipeError
from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.model import DecModel
from dec_export.reference.optim import ENERGY_SIZE, OptimCanonicalizer, OptimOptions, with_optim
from dec_export.reference.warp import Phi
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.fitting import copy_weights, published_state_dict
from tests.conftest import SMALL_CANONICALIZER, photographs
from tests.helpers.discrete import discrete_recipe
from tests.helpers.models import formula_weights
from tests.reference.test_published import formula_image

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_optim.json").read_text())


def small(steps: int, rate: float) -> OptimCanonicalizer:
    torch.manual_seed(0)
    return OptimCanonicalizer(SMALL_CANONICALIZER, OptimOptions(steps=steps, learning_rate=rate)).double()


@pytest.mark.parametrize("case", PUBLISHED["cases"])
def test_the_descent_gives_the_published_numbers(case: str) -> None:
    settings = PUBLISHED["cases"][case]
    options = OptimOptions(
        optimiser="adam" if case.startswith("adam") else "sgd",
        learning_rate=tuple(settings["learning_rate"]),
        steps=PUBLISHED["steps"],
        betas=tuple(PUBLISHED["betas"]),
        normalise=case.endswith("normalised"),
    )
    canonicalizer = OptimCanonicalizer(SMALL_CANONICALIZER, options).double().eval()
    shapes = {name: tuple(value.shape) for name, value in canonicalizer.state_dict().items()}
    assert {name: list(shape) for name, shape in shapes.items()} == PUBLISHED["keys"]
    copy_weights(canonicalizer.state_dict(), formula_weights(shapes), Path("formula"), "small")
    pixels = formula_image(PUBLISHED["image_size"])
    for layer, phi in enumerate(canonicalizer(torch.cat([pixels, pixels.flip(-1)]))):
        for axis in ("x", "y"):
            truth = np.array(settings["phis"][f"phi_{axis}_{layer}"])
            found = getattr(phi, axis).numpy().ravel()
            assert np.linalg.norm(found - truth) <= 1e-10 * np.linalg.norm(truth), (layer, axis)


@given(st.floats(1e-3, 1), st.integers(1, 4))
def test_every_variable_has_the_published_rate(rate: float, layers: int) -> None:
    rates = tuple(rate * (i + 1) for i in range(layers))
    assert OptimOptions("adam", rates).rates(layers) == [*rates, *rates]
    assert OptimOptions("sgd", rates).rates(layers) == [*rates, *[rates[-1]] * layers]
    assert OptimOptions("sgd", rate).rates(layers) == [rate] * 2 * layers
    with pytest.raises(RecipeError, match="one learning rate, or one for each"):
        OptimOptions("sgd", rates).rates(layers + 1)


def test_a_normalised_gradient_moves_by_the_rate() -> None:
    options = OptimOptions(learning_rate=0.125, steps=1, normalise=True)
    torch.manual_seed(0)
    for phi in OptimCanonicalizer(SMALL_CANONICALIZER, options).double().eval()(image()):
        for axis in phi:
            assert math.isclose((axis - 1).norm().item(), 0.125, rel_tol=1e-9)


def energies(seed: int = 3) -> Weights:
    torch.manual_seed(seed)
    return OptimCanonicalizer(SMALL_CANONICALIZER).state_dict()


@pytest.mark.parametrize("prefix", ["", "DEM."])
def test_published_energies_load(prefix: str, small_model: DecModel, tmp_path: Path) -> None:
    file = tmp_path / "19 ada_vit_dem_classification_surrogate.pth"
    torch.save({prefix + key: value for key, value in energies().items()}, file)
    model = with_optim(small_model, checkpoint=file, options=OptimOptions(steps=1))
    for name, value in energies().items():
        assert torch.equal(model.DEM.state_dict()[name], value), name


def test_energies_that_do_not_fit_are_refused(small_model: DecModel, tmp_path: Path) -> None:
    file = tmp_path / "energies.pth"
    torch.save({key: value for key, value in energies().items() if key != "module_list.1.2.bias"}, file)
    with pytest.raises(CheckpointError, match=r"'module_list.1.2.bias' 1 is missing"):
        with_optim(small_model, checkpoint=file)
    torch.save(published_state_dict(small_model), file)
    with pytest.raises(CheckpointError, match="holds no energies of Optim: expected keys such as"):
        with_optim(small_model, checkpoint=file)


@pytest.mark.parametrize("prefix", ["", "DEM."])
def test_a_build_refuses_energies_with_the_reason(prefix: str, small_model: DecModel, tmp_path: Path) -> None:
    weights = {key: value for key, value in published_state_dict(small_model).items() if not key.startswith("DEM.")}
    torch.save({**weights, **{prefix + key: value for key, value in energies().items()}}, tmp_path / "optim.pth")
    with pytest.raises(CheckpointError, match="needs gradients at inference and cannot be exported"):
        load_reference(small_model.recipe, tmp_path / "optim.pth")


def test_only_models_with_a_solver_have_the_baseline(small_model: DecModel) -> None:
    assert isinstance(small_model.recipe.canonicalizer, CanonicalizerRecipe)
    small_model.recipe = discrete_recipe()
    with pytest.raises(RecipeError, match="has no canonicalizer to replace"):
        with_optim(small_model)


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
    weight = canonicalizer.module_list[0][0].conv.weight  # type: ignore[index,union-attr]
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
