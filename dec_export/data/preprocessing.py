"""The preprocessing of images, which is identical to timm's evaluation pipeline."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from dec_export.errors import ImageError
from dec_export.recipe.preparation import Deviation, Interpolation, Mean

# This is four times the image of a 24-megapixel camera. A larger file is more likely a decompression bomb.
MAX_PIXELS = 100_000_000
# A progressive JPEG is decoded in scans, each over all of its pixels; a usual one has ten. Decoders manage about 1.8e9
# pixels in a second, and a file of a few kilobytes can ask for thousands of scans.
MAX_SCANNED_PIXELS = 2_000_000_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Preprocessing:
    """The steps from an image file to the model's input: resize the shorter side, crop the centre, scale, normalise.

    size: the side of the square input in pixels. crop_pct: the size divided by the resized shorter side. mean, std: the
    mean and the standard deviation of R, G and B, for values in [0, 1]. squash: whether both sides are resized (timm's
    crop mode "squash") instead of the shorter one (its crop mode "center").
    """

    size: Annotated[int, Field(ge=1, le=4096)]
    crop_pct: Annotated[float, Field(ge=0.1, le=1)]
    interpolation: Interpolation
    mean: Mean
    std: Deviation
    squash: bool = False

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """Return a (3, size, size) float32 array, as torchvision's Resize, CenterCrop, ToTensor and Normalize do."""
        return self.normalise(self.crop(image))

    def crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels (size, size, 3) that the model sees, after the resize and the crop of the centre."""
        return np.array(self._cropped(image.convert("RGB"), self.interpolation))

    def crop_mask(self, mask: Image.Image) -> NDArray[np.uint8]:
        """Return the classes (size, size) of the pixels that `crop` returns; a resize takes the nearest pixel."""
        return np.array(self._cropped(mask, "nearest"))

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return pixels (size, size, 3) as the model's input (3, size, size)."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (
            np.ascontiguousarray(((pixels.astype(np.float32) / np.float32(255)) - mean) / std).transpose(2, 0, 1).copy()
        )

    def _cropped(self, image: Image.Image, interpolation: Interpolation) -> Image.Image:
        resized = self._resize(image, interpolation)
        left, top = (round((side - self.size) / 2.0) for side in resized.size)
        return resized.crop((left, top, left + self.size, top + self.size))

    def _resize(self, image: Image.Image, interpolation: Interpolation) -> Image.Image:
        target = math.floor(self.size / self.crop_pct)
        width, height = image.size
        short, long = min(width, height), max(width, height)
        scaled = target if self.squash else int(target * long / short)
        if target * scaled > MAX_PIXELS:
            raise ImageError(
                f"An image of {width} x {height} pixels becomes {target} x {scaled} when its shorter side is resized, "
                f"more than {MAX_PIXELS} pixels: crop it."
            )
        new_size = (target, scaled) if width <= height else (scaled, target)
        return image if new_size == image.size else image.resize(new_size, Image.Resampling[interpolation.upper()])
