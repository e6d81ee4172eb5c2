"""The images on which every model of a proof runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dec_export.data.images import ImageSet
from dec_export.reference.warp import Phi
from dec_export.tasks.arrays import Labels


@dataclass(frozen=True)
class LabelledImages:
    """Images of objects that all have one scale, with their locally scaled copies.

    scale: the scale of the objects.
    inputs, scaled: the images and their copies, (N, 3, H, W) float32.
    labels, labels_scaled: the labels of the images and of their copies, (N,), or (N, H, W) for segmentation.
    phi: the warps that scaled the copies.
    """

    scale: float
    inputs: NDArray[np.float32]
    labels: Labels
    scaled: NDArray[np.float32]
    labels_scaled: Labels
    phi: Phi


@dataclass(frozen=True)
class RescaledImages:
    """N images whose objects all have scale 1, and K copies of each that differ in the scales of the objects alone.

    originals: the images, (N, 3, H, W) float32.
    copies: the copies, (N, K, 3, H, W) float32.
    labels: the labels of the copies, (N, K), or (N, K, H, W) for segmentation.
    scales: the scale of each object of each copy, (N, K, objects) float64.
    """

    originals: NDArray[np.float32]
    copies: NDArray[np.float32]
    labels: Labels
    scales: NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """The images on which every model of a proof runs.

    scaled: locally scaled copies of the images, (N, 3, H, W) float32.
    phi: the warps that scaled the copies, drawn with `seed` and `strength`.
    labelled: images of known classes; empty if the data have no labels.
    rescaled: images whose objects change their scales; None if the data have no such images.
    """

    images: ImageSet
    scaled: NDArray[np.float32]
    phi: Phi
    seed: int
    strength: float
    labelled: tuple[LabelledImages, ...] = ()
    rescaled: RescaledImages | None = None
