"""Canonicalization by optimisation ("Optim"), the baseline that DEC is compared with; it is never exported.

Source: arXiv 2508.14187, section 5 (comparison with Optim). An energy of the warped image is learned, and phi is found
by a few steps of gradient descent on it, through which training differentiates. See docs/semantics.md, section 8.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.model import DecModel
from dec_export.reference.warp import Phi, warp

ENERGY_SIZE = 128
STEPS = 5
LEARNING_RATE = 0.1


class EnergyBlock(nn.Module):
    """GELU(InstanceNorm(conv(x))) + projection(x)."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.InstanceNorm2d(channels_out)
        self.projection = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch _ height width"]:
        result: Tensor = F.gelu(self.norm(self.conv(x))) + self.projection(x)
        return result


class EnergyNetwork(nn.Sequential):
    """A network that computes the energy of each warped image."""

    def __init__(self, recipe: CanonicalizerRecipe) -> None:
        channels = recipe.channels
        blocks = [
            EnergyBlock(channels[i], channels[i + 1], kernel_size) for i, kernel_size in enumerate(recipe.kernel_sizes)
        ]
        super().__init__(*blocks, nn.Conv2d(channels[-1], 1, 1))

    def forward(self, x: Float[Tensor, "batch 3 _ _"]) -> Float[Tensor, " batch"]:
        for module in self:
            x = module(x)
        return -x.mean(dim=(1, 2, 3))


class OptimCanonicalizer(nn.Module):
    """A replacement of `Canonicalizer` that finds the phi of every layer by gradient descent on an energy.

    In training mode the steps are recorded, so that a loss on the output trains the energy; memory grows with the
    number of steps.
    """

    def __init__(self, recipe: CanonicalizerRecipe, steps: int = STEPS, learning_rate: float = LEARNING_RATE) -> None:
        super().__init__()
        self.recipe, self.steps, self.learning_rate = recipe, steps, learning_rate
        self.energies = nn.ModuleList(EnergyNetwork(recipe) for _ in recipe.coarse_resolution)

    def energy(self, phis: list[Phi], image: Float[Tensor, "batch 3 128 128"]) -> Float[Tensor, " batch"]:
        """Return the sum over layers of the energy of the image that is warped by the layer's phi."""
        scores = [energy(warp(phi, image)) for energy, phi in zip(self.energies, phis, strict=True)]
        return torch.stack(scores).sum(dim=0)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Phi]:
        # Inference needs the gradient of the energy by phi as well. A tensor that was made in inference mode cannot
        # have gradients, but its copy can.
        with torch.inference_mode(False), torch.enable_grad():
            return self._descend(image.clone())

    def _descend(self, image: Tensor) -> list[Phi]:
        small = F.interpolate(image, size=(ENERGY_SIZE, ENERGY_SIZE), mode="bilinear", align_corners=True)
        variables = []
        for resolution in self.recipe.coarse_resolution:
            variables += [axis.requires_grad_() for axis in Phi.ones(image.shape[0], resolution, small)]
        for _ in range(self.steps):
            energy = self.energy(_as_phis(variables), small).sum()
            gradients = torch.autograd.grad(energy, variables, create_graph=self.training)
            moved = [v - self.learning_rate * g for v, g in zip(variables, gradients, strict=True)]
            variables = moved if self.training else [v.detach().requires_grad_() for v in moved]
        return _as_phis(variables if self.training else [v.detach() for v in variables])


def _as_phis(variables: list[Tensor]) -> list[Phi]:
    return [Phi(x, y) for x, y in zip(variables[::2], variables[1::2], strict=True)]


def with_optim(model: DecModel, seed: int = 0) -> DecModel:
    """Return a copy of a model that canonicalizes by optimisation, with seeded random energies.

    Raises RecipeError when the model has no canonicalizer.
    """
    recipe = model.recipe.deep_equilibrium
    if recipe is None:
        raise RecipeError(f"recipe '{model.recipe.name}' has no canonicalizer to replace: leave the baseline out.")
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copied.DEM = OptimCanonicalizer(recipe).to(next(model.parameters()))  # type: ignore[assignment]
    return copied.train(model.training)
