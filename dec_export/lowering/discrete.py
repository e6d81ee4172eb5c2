"""The classical canonicalizer, lowered: the grids of its candidates are constants, and candidates are scored in turn.

A candidate's coordinates x depend on its steps along x alone, and its coordinates y on its steps along y alone. So the
maps of coordinates of `limit` candidates along each axis are stored, not those of all limit^2 grids; they are computed
in float64 and rounded once.

All candidates at once would need limit^2 warped images for each image of the batch: 481 MB for 25 candidates and 32
images of 224 pixels. One after the other, they need one warped image and its features at a time, and take the same
operations, which are large enough to fill the threads of a CPU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dec_export.lowering.warp import LoweredGrid, sample
from dec_export.recipe.canonicalizers import DISCRETE_RESOLUTION
from dec_export.reference.discrete import DiscreteCanonicalizer, choose, mean_score
from dec_export.reference.warp import Phi


class LoweredDiscrete(nn.Module):
    """`DiscreteCanonicalizer` for images of one size."""

    columns: Tensor
    rows: Tensor
    candidates_x: Tensor
    candidates_y: Tensor

    def __init__(self, canonicalizer: DiscreteCanonicalizer, size: tuple[int, int]) -> None:
        super().__init__()
        self.limit = canonicalizer.recipe.limit
        self.conv_layers = canonicalizer.conv_layers
        phi = canonicalizer.candidates
        # Along the diagonal, candidate i has the i-th steps on both axes.
        diagonal = Phi(*(axis[:: self.limit + 1].double() for axis in phi))
        grids = LoweredGrid(DISCRETE_RESOLUTION, size).double()(diagonal)
        for name, values in (("columns", grids[..., :1]), ("rows", grids[..., 1:])):
            self.register_buffer(name, values.contiguous())
        self.register_buffer("candidates_x", phi.x)
        self.register_buffer("candidates_y", phi.y)

    def scores(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch candidates"]:
        """Return the score of every candidate."""
        found = []
        for column in self.columns:
            for row in self.rows:
                grid = torch.cat([column, row], dim=-1).expand(image.shape[0], -1, -1, -1)
                found.append(mean_score(list(self.conv_layers), sample(image, grid)))
        return torch.stack(found, dim=1)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Phi]:
        """Return the one phi of every image."""
        return [choose(self.scores(image), Phi(self.candidates_x, self.candidates_y))]
