"""The whole reference model, lowered: it computes the reference's function by operators that every ONNX runtime has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dec_export.formats import Format
from dec_export.lowering.block import LoweredBlock, LoweredHead, centred
from dec_export.lowering.discrete import LoweredDiscrete
from dec_export.lowering.heads import fold_batch_norms
from dec_export.lowering.matrices import adaptive_pool_matrix
from dec_export.lowering.mixing import mixing_weights
from dec_export.lowering.preparation import LoweredPreparation
from dec_export.lowering.relative_position_bias import freeze_relative_position_bias
from dec_export.lowering.warp import FixedResize, LoweredWarp
from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.anderson import AndersonOptions, StepFunction
from dec_export.reference.backbones.operations import Operations
from dec_export.reference.canonicalizer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Canonicalizer,
    CanonicalizerModule,
    CanonicalizerNetwork,
    scores_to_phi,
)
from dec_export.reference.discrete import DiscreteCanonicalizer
from dec_export.reference.finite import finite_samples, guarded, nan_unless
from dec_export.reference.model import DecModel, DecOutput, predict
from dec_export.reference.precision import cast_backbone, cast_head, check_precision
from dec_export.reference.warp import Phi


class LoweredStep(nn.Module):
    """`CanonicalizerNetwork.step` for one size of the prepared image; it maps a phi and the image to the next phi.

    sizes: the size (h, w) of each block's input, and of the last block's output.
    """

    head: LoweredHead
    warp: LoweredWarp

    def __init__(self, network: CanonicalizerNetwork, recipe: CanonicalizerRecipe, size: tuple[int, int]) -> None:
        super().__init__()
        self.coarse_resolution, image_size = network.coarse_resolution, size
        layers: list[Any] = list(network)  # nn.Sequential does not keep the types of its modules
        *blocks, conv, norm, _pool, _sigmoid = layers
        lowered, self.sizes = [], [size]
        for block, pool_rate in zip(blocks, recipe.pool_rates, strict=True):
            lowered.append(LoweredBlock(block, size))
            size = (size[0] // pool_rate, size[1] // pool_rate)
            self.sizes.append(size)
        self.blocks = nn.ModuleList(lowered)
        self.head = LoweredHead(conv, norm, *(adaptive_pool_matrix(n, network.coarse_resolution) for n in size))
        self.warp = LoweredWarp(self.coarse_resolution, image_size, padding=lowered[0].padding)

    @property
    def lowered_blocks(self) -> list[LoweredBlock]:
        """The blocks, in order."""
        return list(self.blocks)  # type: ignore[arg-type]

    def at_identity(self, image: Tensor) -> Phi:
        """Return the step at constant phi, whose warp is the identity, so that nothing is sampled or rounded."""
        return self._score(self.lowered_blocks[0].pad(image))

    def forward(self, phi: Phi, image: Tensor) -> Phi:
        """Return the step at `phi`; `image` (B, c, h, w) should have means near zero, which only improves rounding."""
        return self._score(self.warp(phi, image))

    def _score(self, padded: Tensor) -> Phi:
        features = self.blocks[0](padded)
        for block in self.lowered_blocks[1:]:
            features = block(block.pad(features))
        return scores_to_phi(torch.sigmoid(self.head(features)))


def unrolled_solve(f: StepFunction, start: Tensor, first: Tensor, options: AndersonOptions) -> Tensor:
    """Compute `reference.anderson.solve` with every iteration written out; `first` is f(start).

    This solver never ends early, so that a sample's result does not depend on the rest of its batch. The reference ends
    early only when the residuals of all samples are below the tolerance, and further iterations then change the result
    by about the tolerance. With `max_iter` of 1 or 2 nothing is mixed, and the solution is one step from `start`.
    """
    if options.max_iter <= 2:
        return first
    iterates = [start, first]
    images = [iterates[1], f(iterates[1])]
    for k in range(2, options.max_iter):
        window_z = torch.stack(iterates[-options.memory :], dim=1)
        window_f = torch.stack(images[-options.memory :], dim=1)
        weights = mixing_weights(window_f - window_z, options.regularisation)[:, None]
        mixed = options.damping * (weights @ window_f)
        if options.damping != 1:
            mixed = mixed + (1 - options.damping) * (weights @ window_z)
        iterates.append(mixed[:, 0])
        images.append(f(iterates[k]))
        residual = (images[k] - iterates[k]).square().sum(dim=1, keepdim=True)
        if k == 2:
            best, smallest = images[k], residual
        else:
            best = torch.where(residual < smallest, images[k], best)
            smallest = torch.minimum(residual, smallest)
    return f(best)


class LoweredCanonicalizer(nn.Module):
    """`Canonicalizer` for images of one size."""

    mean: Tensor
    std: Tensor

    def __init__(self, canonicalizer: Canonicalizer, size: tuple[int, int]) -> None:
        super().__init__()
        recipe = canonicalizer.recipe
        self.options = canonicalizer.options
        seen = (recipe.image_size, recipe.image_size) if recipe.scale_image else size
        self.resize: nn.Module = nn.Identity()
        if seen != size:
            self.resize = FixedResize(size, seen, align_corners=False, antialias=recipe.antialias)
        self.scale_image = recipe.scale_image
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).view(3, 1, 1))
        self.steps = nn.ModuleList(LoweredStep(network, recipe, seen) for network in canonicalizer.networks)

    def prepared(self, image: Tensor) -> Tensor:
        """Return the image of `Canonicalizer.prepare` minus its mean.

        A warp keeps constants and the first norm cancels them, so the mean is subtracted once instead of at every
        evaluation.
        """
        resized = self.resize(image)
        return centred((resized - self.mean) / self.std if self.scale_image else resized)

    def forward(self, image: Tensor) -> list[Phi]:
        prepared = self.prepared(image)
        return [self._solve(cast("LoweredStep", step), prepared) for step in self.steps]

    def cast_convolutions(self, dtype: torch.dtype) -> None:
        """Let the blocks' convolutions compute in another dtype, in place."""
        for module in self.steps.modules():
            if isinstance(module, LoweredBlock):
                module.cast_convolution(dtype)

    def _solve(self, step: LoweredStep, image: Tensor) -> Phi:
        resolution = step.coarse_resolution

        def f(z: Tensor) -> Tensor:
            phi: Phi = step(Phi.unflatten(z, resolution), image)
            return phi.flatten()

        start = Phi.ones(image.shape[0], resolution, image).flatten()
        first = step.at_identity(image).flatten()
        return Phi.unflatten(unrolled_solve(f, start, first, self.options), resolution)


# The lowered form of each kind of canonicalizer; one that is not here is exported as it is. Each form takes the type
# that is its key, which the type of the table cannot say: hence Any.
_LOWERED: dict[type[CanonicalizerModule], Callable[[Any, tuple[int, int]], nn.Module]] = {
    Canonicalizer: LoweredCanonicalizer,
    DiscreteCanonicalizer: LoweredDiscrete,
}


def _lower_canonicalizer(canonicalizer: CanonicalizerModule, size: int) -> nn.Module:
    lowered = _LOWERED.get(type(canonicalizer))
    return canonicalizer if lowered is None else lowered(canonicalizer, (size, size))


class LoweredModel(nn.Module):
    """A rewritten DecModel for inference at its recipe's image size, with the inputs and outputs of the DecModel.

    precision: the format of the backbone.
    solver_precision: the format of the canonicalizer's convolutions.
    Weights are rewritten in float64 and rounded once.
    """

    def __init__(
        self, reference: DecModel, precision: Format = Format.FP32, solver_precision: Format = Format.FP32
    ) -> None:
        super().__init__()
        precision, solver_precision = check_precision(precision, solver_precision)
        self.recipe = reference.recipe
        size = self.recipe.image_size
        dtype = next(reference.parameters()).dtype
        self.canonicalizer = _lower_canonicalizer(reference.DEM, size).to(dtype)
        self.backbone, self.decoder = reference.backbone, reference.decoder
        freeze_relative_position_bias(self.backbone)
        cast_backbone(self.backbone, precision)
        if self.decoder is not None:
            fold_batch_norms(self.decoder)
            cast_head(self.decoder, precision)
        if isinstance(self.canonicalizer, LoweredCanonicalizer) and solver_precision is not Format.FP32:
            self.canonicalizer.cast_convolutions(solver_precision.torch)
        preparation = self.recipe.backbone.preparation
        self.preparation: nn.Module = nn.Identity()
        if preparation is not None:
            self.preparation = LoweredPreparation(preparation, size).to(dtype)
        self.warps = nn.ModuleDict()
        # One pass finds the sizes of the feature maps and creates a fixed module for each warp.
        with torch.no_grad():
            self(torch.zeros(1, 3, size, size, dtype=dtype))

    def forward(self, image: Tensor) -> DecOutput:
        phis = self.canonicalizer(image)
        finite = finite_samples(image, phis)
        phis = guarded(finite, phis)
        logits = predict(self.recipe, self.backbone, self.decoder, image, phis, self.operations)
        return DecOutput(nan_unless(finite, logits), phis)

    @property
    def operations(self) -> Operations:
        """The warps and the preparation of the backbone's input, for this model's sizes."""
        warp, unwarp = (partial(self._warp, inverse=inverse) for inverse in (False, True))
        return Operations(warp, unwarp, self.preparation)

    def _warp(self, phi: Phi, features: Tensor, resolution: tuple[int, int] | None, *, inverse: bool) -> Tensor:
        coarse, height, width = int(phi.x.shape[1]), int(features.shape[-2]), int(features.shape[-1])
        around = "" if resolution is None else f"_at_{resolution[0]}x{resolution[1]}"
        name = f"{'un' if inverse else ''}warp_{coarse}_{height}x{width}{around}"
        if name not in self.warps:
            self.warps[name] = LoweredWarp(
                coarse, (height, width), resolution, inverse=inverse, mode=self.recipe.interpolation_mode
            ).to(features.dtype)
        warped: Tensor = self.warps[name](phi, features)
        return warped


def lower(reference: DecModel, precision: Format = Format.FP32, solver_precision: Format = Format.FP32) -> LoweredModel:
    """Return an equivalent of `reference` that can be exported; `reference` itself does not change.

    Formats other than fp32 need a reference in float32. Raises DecExportError for a format that the backbone, or the
    canonicalizers' convolutions, cannot have.
    """
    return LoweredModel(copy.deepcopy(reference), precision, solver_precision).eval()
