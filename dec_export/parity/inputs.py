"""What every model of a proof is run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.data.images import ImageSet
from dec_export.reference.warp import Phi


@dataclass(frozen=True)
class LabelledImages:
    """Images of objects that all have one scale, with their locally scaled copies.

    inputs, scaled: (N, 3, H, W) float32. labels, labels_scaled: (N,), for segmentation (N, H, W). phi: of the copies.
    """

    scale: float
    inputs: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]
    scaled: NDArray[np.float32]
    labels_scaled: NDArray[np.integer[Any]]
    phi: Phi


@dataclass(frozen=True)
class Inputs:
    """What every model of a proof is run on.

    scaled: locally scaled copies of the images, (N, 3, H, W) float32; phi: the warps that scaled them, drawn with
    `seed` and `strength`. labelled: images of known classes, if there are any.
    """

    images: ImageSet
    scaled: NDArray[np.float32]
    phi: Phi
    seed: int
    strength: float
    labelled: tuple[LabelledImages, ...] = ()
