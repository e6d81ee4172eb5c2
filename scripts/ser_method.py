"""Soft Equivariance Regularization: the views of a batch and the two losses.

Source: arXiv 2603.06693. The embedding of an image is to be the same for two views of it (Barlow Twins, arXiv
2103.03230). The map of patches of an inner layer is to be turned, flipped and scaled as the image is: a loss on a few
images of each batch pulls the map of one view, brought into the other's frame, towards that view's map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dec_export.reference.groups import Similarity

# Of the standard deviation of an embedding's entry, as in batch normalisation.
_EPSILON = 1e-5
# Crops keep the lower digit, whose class is asked for, in most views.
CROP_AREA = (0.6, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
# Rows of patches of a geometric view, of 8: areas of 0.77 to 1.27 in whole patches.
SCALED_SIDES = (-1, 0, 1)
MAX_NOISE = 0.05


class GeometricViews(NamedTuple):
    """Two views of the same images, each acted on by an element of its own.

    images: two tensors (B, 1, H_v, W_v). elements: for either, what acted on every image.
    """

    images: tuple[Tensor, Tensor]
    elements: tuple[list[Similarity], list[Similarity]]


# --- views -----------------------------------------------------------------------------------------------------------


def crops(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Of every image (B, C, H, W) a random rectangle, resized to the whole; bilinear. No flips: they change digits."""
    count = len(images)
    area = generator.uniform(*CROP_AREA, count)
    aspect = np.exp(generator.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1]), count))
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=1).clip(max=1)
    centres = (1 - sides) * generator.uniform(-1, 1, (count, 2))
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, (0, 1), (0, 1)], theta[:, :, 2] = sides, centres
    grid = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def photometric(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Another gamma, contrast and brightness of every image (B, 1, H, W) in [0, 1], half of them blurred, and noise."""
    count = len(images)
    gamma, contrast, shift, noise = (
        torch.from_numpy(generator.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))
        for low, high in ((0.7, 1.4), (0.6, 1.0), (0.0, 0.3), (0.0, MAX_NOISE))
    )
    changed = contrast * images.clamp(0, 1) ** gamma + shift * (1 - contrast)
    blurred = torch.from_numpy(generator.random((count, 1, 1, 1)) < 0.5)
    changed = torch.where(blurred, _blur(changed), changed)
    return changed + noise * torch.from_numpy(generator.standard_normal(images.shape, np.float32))


def _blur(images: Tensor) -> Tensor:
    """Binomial blur of 3 x 3 pixels of images (B, 1, H, W)."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), (line[:, None] * line)[None, None])


def geometric_views(images: Tensor, grid: int, generator: np.random.Generator) -> GeometricViews:
    """Two views of square images (B, 1, H, H) of grid x grid patches, whole: turned, flipped and scaled.

    Every image has two different symmetries of the square; either view has one scale, which leaves whole patches.
    """
    patch = images.shape[-1] // grid
    sides = [grid + int(change) for change in generator.choice(SCALED_SIDES, 2)]
    first = generator.integers(0, 8, len(images))
    second = (first + generator.integers(1, 8, len(images))) % 8
    views, elements = [], []
    for side, symmetries in zip(sides, (first, second), strict=True):
        acting = [Similarity(int(s) % 4, mirrored=bool(s >= 4), scale=side / grid) for s in symmetries]
        size = (side * patch, side * patch)
        views.append(torch.stack([g.act(image, size) for g, image in zip(acting, images, strict=True)]))
        elements.append(acting)
    return GeometricViews((views[0], views[1]), (elements[0], elements[1]))


# --- losses ----------------------------------------------------------------------------------------------------------


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """The correlation, over a batch, of every entry of embeddings (B, D) with every entry of the others: (D, D)."""
    one, other = ((z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + _EPSILON).sqrt() for z in (first, second))
    return one.T @ other / len(first)


def barlow_twins(correlation: Tensor, redundancy: float) -> Tensor:
    """sum_i (1 - c_ii)^2 + redundancy * sum_{i != j} c_ij^2 of a matrix (D, D): arXiv 2103.03230, equation 1."""
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * off_diagonal


def align(maps: Tensor, elements: Sequence[Sequence[Similarity]], size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) of the first views in the second views' frame, of `size`: each acted on by g2 g1^-1."""
    relative = (second @ first.inverse for first, second in zip(*elements, strict=True))
    return torch.stack([g.act(each, size) for g, each in zip(relative, maps, strict=True)])


def patch_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of the patches (B, P, D) of two views in one frame, a scalar: the mean over 2 B P patches.

    A patch's positive is the other view's patch at its place. Its negatives are the patches of both views of the other
    images: those of its own image, which may well look alike, are not in the denominator. Similarity is the cosine.
    Source: arXiv 2603.06693, whose negatives these are; of SimCLR (arXiv 2002.05709), equation 1, otherwise.
    """
    count, patches = first.shape[:2]
    one, other = (F.normalize(z.flatten(0, 1), dim=-1) for z in (first, second))
    everything = torch.cat([one, other])
    image = torch.arange(count).repeat_interleave(patches).repeat(2)
    similarity = everything @ everything.T / temperature
    negatives = similarity.masked_fill(image[:, None] == image[None], -torch.inf)
    positive = (one * other).sum(dim=-1).repeat(2) / temperature
    return (torch.cat([positive[:, None], negatives], dim=1).logsumexp(dim=1) - positive).mean()


# --- projectors ------------------------------------------------------------------------------------------------------


def embedding_projector(width: int, hidden: int) -> nn.Sequential:
    """Embeddings (B, width) to (B, hidden), as in Barlow Twins with one hidden layer less."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, hidden, bias=False)
    )


def patch_projector(width: int, hidden: int) -> nn.Sequential:
    """Patches (..., width) to (..., hidden), each by itself: what acts on places acts on the projected map as well."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False)
    )
