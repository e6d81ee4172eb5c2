"""The Deep Equilibrium Canonicalizer: small networks whose fixed points are the warps of a DEC model.

Source: arXiv 2508.14187, section 4, and its published implementation; docs/semantics.md, section 3. Submodules carry
the names that the published checkpoints use (`module_list.{layer}.{i}.conv1.weight`, ...), so that their keys load as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.anderson import AndersonOptions, StepFunction, solve
from dec_export.reference.warp import Phi, warp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResidualBlock(nn.Module):
    """MaxPool(Softplus(InstanceNorm(conv(x) + projection(x)))); the pooling divides the size by `pool_rate`."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, pool_rate: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2, padding_mode="reflect")
        self.norm1 = nn.InstanceNorm2d(channels_out, affine=True)
        self.projection = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.pool = nn.MaxPool2d(pool_rate) if pool_rate > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        pooled: Tensor = self.pool(F.softplus(self.norm1(self.conv1(x) + self.projection(x))))
        return pooled


class CanonicalizerNetwork(nn.Sequential):
    """A network that gives a warped image (B, 3, H, W) scores (B, 2, R, R) in (0, 1)."""

    def __init__(self, recipe: CanonicalizerRecipe, coarse_resolution: int) -> None:
        channels = recipe.channels
        blocks = [
            ResidualBlock(channels[i], channels[i + 1], kernel_size, pool_rate)
            for i, (kernel_size, pool_rate) in enumerate(zip(recipe.kernel_sizes, recipe.pool_rates, strict=True))
        ]
        super().__init__(
            *blocks,
            nn.Conv2d(channels[-1], 2, 1),
            nn.InstanceNorm2d(2, affine=True),
            nn.AdaptiveAvgPool2d(coarse_resolution),
            nn.Sigmoid(),
        )
        self.coarse_resolution = coarse_resolution

    def step(self, phi: Phi, image: Float[Tensor, "batch 3 height width"]) -> Phi:
        """Apply f once: warp the canonicalizer's input by `phi`, score it, and return the scores as a new phi.

        The network runs in the dtype of its weights; the warp runs in the dtype of the image.
        """
        dtype = next(self.parameters()).dtype
        return scores_to_phi(self(warp(phi, image).to(dtype)).to(image.dtype))


def scores_to_phi(scores: Float[Tensor, "batch 2 R R"]) -> Phi:
    """Return scores as a phi, without the last column of the x scores and the first row of the y scores."""
    return Phi(scores[:, 0, :, :-1], scores[:, 1, 1:, :].transpose(-1, -2))


class CanonicalizerModule(nn.Module):
    """The part of a model that finds the phis of an image; this base stands for one that runs no solver.

    networks: the networks whose steps a solver iterates, in order; there are none without a solver.
    options: the settings of the solver.
    """

    networks: Sequence[CanonicalizerNetwork] = ()

    def __init__(self) -> None:
        super().__init__()
        self.options = AndersonOptions()

    def step_functions(self, image: Float[Tensor, "batch 3 height width"]) -> list[StepFunction]:  # noqa: ARG002
        """Return the step function of every layer, on flattened phis (B, 2 R (R-1)); there is none without a solver."""
        return []


class Canonicalizer(CanonicalizerModule):
    """One network for each canonicalized layer; every network reads the same input image."""

    def __init__(self, recipe: CanonicalizerRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.options = AndersonOptions(max_iter=recipe.max_iter)
        self.module_list = nn.ModuleList(
            CanonicalizerNetwork(recipe, resolution) for resolution in recipe.coarse_resolution
        )

    @property
    def networks(self) -> Sequence[CanonicalizerNetwork]:  # type: ignore[override] # it is not set
        """The network of every canonicalized layer, in order."""
        return list(self.module_list)  # type: ignore[arg-type]

    def prepare(self, image: Float[Tensor, "batch 3 _ _"]) -> Float[Tensor, "batch 3 _ _"]:
        """Return the image that the networks read: resized and normalised if the recipe says so, else unchanged.

        The model's input is already normalised; this second normalisation is part of the published models.
        """
        if not self.recipe.scale_image:
            return image
        size = (self.recipe.image_size, self.recipe.image_size)
        if image.shape[-2:] != size:
            antialias = self.recipe.antialias
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=antialias)
        mean, std = (
            torch.tensor(values, dtype=image.dtype, device=image.device).view(3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return (image - mean) / std

    def step_functions(self, image: Float[Tensor, "batch 3 height width"]) -> list[StepFunction]:
        """Return, for each layer, the step function f of this image on flattened phis (B, 2 R (R-1))."""
        prepared = self.prepare(image)

        def step_function(network: CanonicalizerNetwork) -> StepFunction:
            return lambda z: network.step(Phi.unflatten(z, network.coarse_resolution), prepared).flatten()

        return [step_function(network) for network in self.networks]

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Phi]:
        """Return the fixed point of every layer."""
        phis = []
        for network, f in zip(self.networks, self.step_functions(image), strict=True):
            start = Phi.ones(image.shape[0], network.coarse_resolution, image).flatten()
            phis.append(Phi.unflatten(solve(f, start, self.options), network.coarse_resolution))
        return phis


class NoCanonicalizer(CanonicalizerModule):
    """The part of a model without canonicalizers that stands where `Canonicalizer` would be; it solves nothing."""

    def forward(self, image: Tensor) -> list[Phi]:  # noqa: ARG002
        return []
