"""Canonicalization by optimisation ("Optim"), the baseline that DEC is compared with; it is never exported.

Source: arXiv 2508.14187, section 5 (comparison with Optim). An energy of the warped image is learned, and phi is found
by a few steps of gradient descent on it, through which training differentiates. See docs/semantics.md, section 8.
Submodules carry the names that the published checkpoints use (`module_list.{layer}.{i}.conv.weight`, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.canonicalizer import CanonicalizerModule
from dec_export.reference.model import DecModel
from dec_export.reference.warp import Phi, warp
from dec_export.reference.weights.checkpoint import read_weights
from dec_export.reference.weights.fitting import copy_weights
from dec_export.reference.weights.layouts.optim import energies_in

ENERGY_SIZE = 128
# The published variant of Adam adds this under the square root.
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class OptimOptions:
    """How phi descends the energy. The published configuration file has no entry that sets `optimiser`.

    optimiser: "sgd", or "adam" as the published code varies it (`inner_optimizer`).
    learning_rate: the size of the steps, for all layers or for each of them (`inner_lr`). (!) In the published code,
    all phi_y of "sgd" move by the rate of the last layer.
    steps: the number of steps (`test_inner_epochs`).
    betas: the decay of the two moments of "adam" (`adam_betas`).
    normalise: whether each gradient is divided by its 2-norm (`normalize_inner_grad`). (!) The norm is taken over the
    whole batch, so the phi of an image depends on the other images.
    """

    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float | tuple[float, ...] = 0.1
    steps: int = 5
    betas: tuple[float, float] = (0.2, 0.6)
    normalise: bool = False

    def rates(self, layers: int) -> list[float]:
        """Return the learning rate of every variable: the phi_x of all layers, then the phi_y of all layers.

        Raises RecipeError for a number of rates that is not that of the layers.
        """
        rate = self.learning_rate
        own = [rate] * layers if isinstance(rate, (int, float)) else list(rate)
        if len(own) != layers:
            raise RecipeError(f"Optim needs one learning rate, or one for each of {layers} layers, found {len(own)}.")
        return own + (own if self.optimiser == "adam" else own[-1:] * layers)


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


class OptimCanonicalizer(CanonicalizerModule):
    """A replacement of `Canonicalizer` that finds the phi of every layer by gradient descent on an energy.

    In training mode the steps are recorded, so that a loss on the output trains the energy; memory grows with the
    number of steps.
    """

    def __init__(self, recipe: CanonicalizerRecipe, options: OptimOptions = OptimOptions()) -> None:
        super().__init__()
        self.recipe, self.descent = recipe, options
        self.module_list = nn.ModuleList(EnergyNetwork(recipe) for _ in recipe.coarse_resolution)
        options.rates(len(self.module_list))

    def energy(self, phis: Sequence[Phi], image: Float[Tensor, "batch 3 128 128"]) -> Float[Tensor, " batch"]:
        """Return the sum over layers of the energy of the image that is warped by the layer's phi."""
        scores = [energy(warp(phi, image)) for energy, phi in zip(self.module_list, phis, strict=True)]
        return torch.stack(scores).sum(dim=0)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Phi]:
        # Inference needs the gradient of the energy by phi as well. A tensor that was made in inference mode cannot
        # have gradients, but its copy can.
        with torch.inference_mode(False), torch.enable_grad():
            return self._descend(image.clone())

    def _descend(self, image: Tensor) -> list[Phi]:
        small = F.interpolate(image, size=(ENERGY_SIZE, ENERGY_SIZE), mode="bilinear", align_corners=True)
        start = [Phi.ones(image.shape[0], resolution, small) for resolution in self.recipe.coarse_resolution]
        variables = [axis.requires_grad_() for axis in [*(phi.x for phi in start), *(phi.y for phi in start)]]
        moves = _Moves(self.descent, len(start))
        for _ in range(self.descent.steps):
            energy = self.energy(_as_phis(variables), small).sum()
            gradients = torch.autograd.grad(energy, variables, create_graph=self.training)
            moved = [v - move for v, move in zip(variables, moves.of(gradients), strict=True)]
            variables = moved if self.training else [v.detach().requires_grad_() for v in moved]
        return _as_phis(variables if self.training else [v.detach() for v in variables])


class _Moves:
    """The moves of all variables in one step; with "adam", they depend on the steps before."""

    def __init__(self, options: OptimOptions, layers: int) -> None:
        self.options, self.rates = options, options.rates(layers)
        self.moments: list[tuple[Tensor, Tensor]] = []
        self.taken = 0

    def of(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return how far each variable moves against its gradient."""
        if self.options.normalise:
            gradients = [_normalised(gradient) for gradient in gradients]
        if self.options.optimiser == "sgd":
            return [rate * gradient for rate, gradient in zip(self.rates, gradients, strict=True)]
        return self._of_adam(gradients)

    def _of_adam(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        (beta1, beta2), self.taken = self.options.betas, self.taken + 1
        moments = self.moments or [(torch.zeros_like(gradient), torch.zeros_like(gradient)) for gradient in gradients]
        self.moments = [
            (beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2)
            for (first, second), gradient in zip(moments, gradients, strict=True)
        ]
        shares = (1 - beta1**self.taken, 1 - beta2**self.taken)
        return [
            rate * (first / shares[0]) / (second / shares[1] + _ADAM_EPSILON).sqrt()
            for rate, (first, second) in zip(self.rates, self.moments, strict=True)
        ]


def _normalised(gradient: Tensor) -> Tensor:
    norm = gradient.norm()
    return gradient / norm if norm != 0 else gradient


def _as_phis(variables: list[Tensor]) -> list[Phi]:
    layers = len(variables) // 2
    return [Phi(x, y) for x, y in zip(variables[:layers], variables[layers:], strict=True)]


def with_optim(
    model: DecModel, *, checkpoint: Path | None = None, options: OptimOptions = OptimOptions(), seed: int = 0
) -> DecModel:
    """Return a copy of a model that canonicalizes by optimisation, with energies from a checkpoint or random ones.

    checkpoint: a file with the keys `module_list.{layer}.{i}.*` of the published code, bare or after `DEM.`.
    Raises RecipeError when the model has no deep equilibrium canonicalizer, whose sizes the energies share, and
    CheckpointError when the file does not fit.
    """
    recipe = model.recipe.deep_equilibrium
    if recipe is None:
        raise RecipeError(f"recipe '{model.recipe.name}' has no canonicalizer to replace: leave the baseline out.")
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        canonicalizer = OptimCanonicalizer(recipe, options).to(next(model.parameters()))
    if checkpoint is not None:
        weights = energies_in(read_weights(checkpoint), checkpoint)
        copy_weights(canonicalizer.state_dict(), weights, checkpoint, model.recipe.name)
    copied.DEM = canonicalizer
    return copied.train(model.training)
