"""Turns, flips and changes of scale of square images, and their action rho_g on maps of features.

The group is D4 x R+: the eight symmetries of the square, which permute pixels and are exact, and changes of scale about
the centre, which resample. An element acts on a map as on an image, (rho_g f)(p) = f(g^-1 p), with p from the centre of
the map; so rho_g rho_h = rho_gh, exactly for the symmetries of the square, and up to interpolation with a scale.
Source: arXiv 2603.06693, where rho_g acts on the token map of an inner layer; docs/semantics.md, section 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dec_export.errors import DecExportError


@dataclass(frozen=True)
class Similarity:
    """An element g: it mirrors left to right if `mirrored`, then turns `turns` times by 90 degrees, then scales.

    Turns are counterclockwise as one looks at an image; a scale above 1 enlarges.
    """

    turns: int = 0
    mirrored: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", self.turns % 4)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise DecExportError(f"Expected a change of scale by a positive number, found {self.scale}.")

    def __matmul__(self, first: Similarity) -> Similarity:
        """Return the element that acts like `first` and then like this one."""
        # A flip reverses the direction of every turn that comes before it.
        turns = self.turns + (-first.turns if self.mirrored else first.turns)
        return Similarity(turns, self.mirrored != first.mirrored, self.scale * first.scale)

    @property
    def inverse(self) -> Similarity:
        """The inverse of this element."""
        return Similarity(self.turns if self.mirrored else -self.turns, self.mirrored, 1 / self.scale)

    def act(
        self, features: Float[Tensor, "*batch channels _ _"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "*batch channels _ _"]:
        """Return rho_g of maps or images in a frame of `size`, or of their own size; scaling is bilinear.

        Outside a map, its values are those at the nearest point of the border; `covers` returns the places that do not
        depend on them. Raises DecExportError when a map that is not square would have to be turned by 90 degrees.
        """
        height, width = features.shape[-2:]
        if self.turns % 2 and height != width:
            raise DecExportError(
                f"A map of {height} x {width} cannot be turned by 90 degrees: expected as many rows as columns."
            )
        permuted = features.flip(-1) if self.mirrored else features
        permuted = permuted.rot90(self.turns, (-2, -1))
        frame = (height, width) if size is None else size
        return permuted if self.scale == 1 and frame == (height, width) else _rescale(permuted, self.scale, frame)

    def covers(self, height: int, width: int) -> Bool[Tensor, "{height} {width}"]:
        """Return which places of a frame of height x width take their value only from inside the frame.

        The source of a place is its whole cell and the cells between which its value is interpolated.
        """
        rows, columns = (self._reach(n) <= n / 2 * (1 + 1e-12) for n in (height, width))
        return rows[:, None] & columns[None, :]

    def _reach(self, count: int) -> Tensor:
        """Return the distance from the centre of `count` cells to the far end of each cell's source, in cells."""
        centres = (torch.arange(count, dtype=torch.float64) + 0.5 - count / 2).abs()
        return centres / self.scale + max(0.5, 0.5 / self.scale)


def _rescale(features: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
    """Sample maps (..., C, h, w) on a frame of `size` around the same centre, enlarged by `scale`."""
    lines = [_lines(old, new, scale, features) for old, new in zip(features.shape[-2:], size, strict=True)]
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], dim=-1)
    maps = features.reshape(-1, *features.shape[-3:])
    sampled = F.grid_sample(
        maps, grid.expand(len(maps), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.reshape(*features.shape[:-2], *size)


def _lines(old: int, new: int, scale: float, like: Tensor) -> Tensor:
    """Return the new frame's cells along one axis in the units of grid_sample: -1 and 1 are the old frame's ends."""
    centres = torch.arange(new, dtype=like.dtype, device=like.device) + 0.5 - new / 2
    return centres * (2 / (scale * old))


# The actions that test a model: the symmetries of the square without the identity and the diagonal flips; two scales.
ACTIONS: dict[str, Similarity] = {
    "turned by 90": Similarity(1),
    "turned by 180": Similarity(2),
    "turned by 270": Similarity(3),
    "flipped left to right": Similarity(0, mirrored=True),
    "flipped top to bottom": Similarity(2, mirrored=True),
    "scaled by 0.8": Similarity(scale=0.8),
    "scaled by 1.25": Similarity(scale=1.25),
}
