"""The classical canonicalizer, which chooses the warp with the largest score from a fixed list.

Source: the baseline "canonicalization" of the published implementation of arXiv 2508.14187; docs/semantics.md, section
12. Parameters carry the names that the published checkpoints use below `cannonicalizer.`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.recipe.canonicalizers import DiscreteCanonicalizerRecipe
from dec_export.reference.canonicalizer import CanonicalizerModule
from dec_export.reference.finite import nan_unless
from dec_export.reference.warp import Phi, dense_grid, sample

# The pooling between two convolutions of the score.
POOL_RATE = 4


def candidate_phis(recipe: DiscreteCanonicalizerRecipe) -> Phi:
    """Return the candidates as one phi of `limit`^2 samples, (limit^2, R, R-1) float32, with x outer and y inner.

    The published code stores the steps in float32, also in a model in float64.
    """
    steps = torch.tensor(recipe.axis_steps(), dtype=torch.float32)
    count = len(steps)
    return Phi(steps.repeat_interleave(count, dim=0), steps.repeat(count, 1, 1))


class DiscreteCanonicalizer(CanonicalizerModule):
    """A small network that scores the image under every candidate warp, and the choice of the best candidate.

    The candidates are buffers, `deform_params_x` and `deform_params_y`, of shape (limit^2, R, R-1).
    """

    deform_params_x: Tensor
    deform_params_y: Tensor

    def __init__(self, recipe: DiscreteCanonicalizerRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        channels = recipe.channels
        self.conv_layers = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], size, padding=size // 2)
            for i, size in enumerate(recipe.kernel_sizes)
        )
        phi = candidate_phis(recipe)
        self.register_buffer("deform_params_x", phi.x)
        self.register_buffer("deform_params_y", phi.y)

    @property
    def candidates(self) -> Phi:
        """The phis of all candidates, as one phi of limit^2 samples."""
        return Phi(self.deform_params_x, self.deform_params_y)

    def scores(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch candidates"]:
        """Return the score of every candidate: the mean over pixels of the network's output on the warped image.

        The candidates are evaluated one after the other, so that memory does not grow with their number.
        """
        size = (image.shape[-2], image.shape[-1])
        grids = (dense_grid(Phi(x[None], y[None]), size) for x, y in zip(*self.candidates, strict=True))
        warped = (sample(image, grid.expand(len(image), -1, -1, -1)) for grid in grids)
        return torch.stack([mean_score(list(self.conv_layers), candidate) for candidate in warped], dim=1)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Phi]:
        """Return the one phi of every image."""
        return [choose(self.scores(image), self.candidates)]


def mean_score(convolutions: Sequence[nn.Module], image: Float[Tensor, "batch 3 _ _"]) -> Float[Tensor, " batch"]:
    """Return the mean over pixels of the last convolution, with ReLU and max pooling between convolutions."""
    first, *others = convolutions
    features: Tensor = first(image)
    for convolution in others:
        features = convolution(F.max_pool2d(F.relu(features), POOL_RATE))
    return features.mean(dim=(1, 2, 3))


def choose(scores: Float[Tensor, "batch candidates"], candidates: Phi) -> Phi:
    """Return the candidate of the largest score of each image; it is NaN where the scores are not finite."""
    index = scores.argmax(dim=1)
    finite = scores.abs().sum(dim=1) <= torch.finfo(scores.dtype).max
    return Phi(*(nan_unless(finite, axis.index_select(0, index)) for axis in candidates))
