"""The views of a batch that Soft Equivariance Regularization (arXiv 2603.06693) compares.

Most images are seen in two ordinary views: crops with other grey values. A few images are seen in two geometric views,
which are turned, flipped and scaled as a whole, so that their maps of patches can be compared place by place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dec_export.reference.groups import Similarity

# These crops keep the lower digit, whose class is asked for, in most views.
CROP_AREA = (0.6, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
# A geometric view has this many more rows of patches than the image. With 8 rows, the areas are 0.77 to 1.27 times the
# image's.
SCALED_SIDES = (-1, 0, 1)
MAX_NOISE = 0.05


class GeometricViews(NamedTuple):
    """Two views of the same images, each acted on by an element of its own.

    images: two tensors (B, C, H_v, W_v). elements: for each view, what acted on every image.
    """

    images: tuple[Tensor, Tensor]
    elements: tuple[list[Similarity], list[Similarity]]


def crops(images: Tensor, generator: np.random.Generator) -> Tensor:
    """A random rectangle of every image (B, C, H, W), resized to the whole image with bilinear sampling.

    Crops are not flipped, because a flip changes what digit is seen.
    """
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
    """Images (B, 1, H, W) in [0, 1] with other grey values.

    Every image gets its own gamma, contrast, brightness and noise; half of them are blurred.
    """
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
    """Images (B, 1, H, W), blurred with a binomial kernel of 3 x 3 pixels."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), (line[:, None] * line)[None, None])


def geometric_views(images: Tensor, grid: int, generator: np.random.Generator) -> GeometricViews:
    """Two views of square images (B, C, H, H) of grid x grid patches, turned, flipped and scaled as a whole.

    The two views of an image have two different symmetries of the square. All images of a view have the same scale,
    which leaves whole patches.
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
