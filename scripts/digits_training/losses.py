"""The two losses of Soft Equivariance Regularization.

Source: arXiv 2603.06693. The invariance loss is that of Barlow Twins (arXiv 2103.03230): the embedding of an image must
be the same for two views of it. The equivariance loss compares maps of patches: the map of one view, brought into the
other view's frame, is pulled towards that view's map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dec_export.reference.groups import Similarity

# Added to the variance of an embedding's entry, as in batch normalisation.
_EPSILON = 1e-5


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """The correlation over a batch of every entry of embeddings (B, D) with every entry of the others, (D, D)."""
    one, other = ((z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + _EPSILON).sqrt() for z in (first, second))
    return one.T @ other / len(first)


def barlow_twins(correlation: Tensor, redundancy: float) -> Tensor:
    """sum_i (1 - c_ii)^2 + redundancy * sum_{i != j} c_ij^2 of a matrix (D, D): arXiv 2103.03230, equation 1."""
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * off_diagonal


def align(maps: Tensor, elements: Sequence[Sequence[Similarity]], size: tuple[int, int]) -> Tensor:
    """The maps (B, C, h, w) of the first views in the second views' frame.

    elements: g1 of every image, and g2 of every image. size: rows and columns of the second views' maps.
    Every map is acted on by g2 g1^-1.
    """
    relative = (second @ first.inverse for first, second in zip(*elements, strict=True))
    return torch.stack([g.act(each, size) for g, each in zip(relative, maps, strict=True)])


def patch_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The contrastive loss of the patches (B, P, D) of two views in one frame: a scalar, the mean over 2 B P patches.

    A patch's positive is the other view's patch at the same place. Its negatives are the patches of both views of the
    other images. Patches of its own image may well look alike, so they are not in the denominator. The similarity is
    the cosine. Source: arXiv 2603.06693 for the choice of negatives; SimCLR (arXiv 2002.05709), equation 1, for the
    rest.
    """
    count, patches = first.shape[:2]
    one, other = (F.normalize(z.flatten(0, 1), dim=-1) for z in (first, second))
    everything = torch.cat([one, other])
    image = torch.arange(count).repeat_interleave(patches).repeat(2)
    similarity = everything @ everything.T / temperature
    negatives = similarity.masked_fill(image[:, None] == image[None], -torch.inf)
    positive = (one * other).sum(dim=-1).repeat(2) / temperature
    return (torch.cat([positive[:, None], negatives], dim=1).logsumexp(dim=1) - positive).mean()
