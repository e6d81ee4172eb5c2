"""The training data of the shipped digit models: images of handwritten digits, each with a scale of its own.

Source: the experiment on digits of arXiv 2508.14187 (three digits of one image, scaled independently in [0.4, 2]), with
the 1,797 digits of 8 x 8 pixels that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits"). Nothing is
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dec_export.errors import DecExportError

Split = Literal["train", "validation", "test"]

IMAGE_SIZE = 64
CLASSES = 10
BACKGROUND = CLASSES
SOURCE_SIZE = 8
# A digit's box has this many pixels at scale 1. The largest digit fills its cell of 32 x 32, so no digits overlap.
BOX_SIZE = 16
CELL_SIZE = 32
MIN_SCALE, MAX_SCALE = 0.4, 2.0
# These are the centres (x, y) of the cells in pixels. The label names the first digit; the others are distractors.
CENTRES = np.array([[32.0, 48.0], [16.0, 16.0], [48.0, 16.0]])
# A smaller digit is moved within its cell by at most this many pixels along each axis.
MAX_SHIFT = 3.0
# A pixel with at least this value belongs to the digit.
INK = 90
STRENGTH = 0.25
_SPLITS: dict[Split, tuple[int, int]] = {"train": (0, 1200), "validation": (1200, 1397), "test": (1397, 1797)}


class SourceDigits(NamedTuple):
    """Handwritten digits: `pixels` (n, 8, 8) float64 in [0, 1], `labels` (n,) int64, `indices` (n,) in the data set."""

    pixels: NDArray[np.float64]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class DigitImages:
    """N composed images.

    pixels: (N, 64, 64) uint8, ink is 255. labels: (N,) int64, the class of the first digit.
    masks: (N, 64, 64) uint8, the class at each pixel, 10 for background.
    sources: (N, 3) int64, which source digits. scales, shifts: (N, 3) and (N, 3, 2) float64, in box sizes and pixels.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    sources: NDArray[np.int64]
    scales: NDArray[np.float64]
    shifts: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pixels)

    def inputs(self, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
        """Model inputs (N, 3, 64, 64) float32: three equal channels, normalised as `Preprocessing` does."""
        unit = self.pixels.astype(np.float32)[:, None] / np.float32(255)
        centre, spread = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
        return np.ascontiguousarray((unit - centre) / spread)


def source_digits(split: Split) -> SourceDigits:
    """Return the source digits of one split; no digit is in two splits. This needs scikit-learn (extra `demo`)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DecExportError(
            "The digits come with scikit-learn, which is not installed: pip install 'dec-export[demo]'."
        ) from error
    images, labels = load_digits(return_X_y=True)
    # NumPy guarantees that the numbers of this generator never change, unlike those of newer generators.
    order = np.random.RandomState(0).permutation(len(images))
    indices = order[slice(*_SPLITS[split])].astype(np.int64)
    pixels = images[indices].reshape(-1, SOURCE_SIZE, SOURCE_SIZE) / 16.0
    return SourceDigits(pixels, labels[indices].astype(np.int64), indices)


def compose(
    digits: SourceDigits,
    count: int,
    seed: int | tuple[int, ...] = 0,
    *,
    scale: float | None = None,
    every: bool = False,
) -> DigitImages:
    """Compose `count` images of three digits each; equal seeds give equal bytes.

    The scales are independent and uniform in [0.4, 2]. With `scale`, the labelled digit has this scale, and with
    `every`, all digits have it; the labelled digits are then taken from the source digits in turn, equally often.
    """
    if scale is not None and not MIN_SCALE <= scale <= MAX_SCALE:
        raise DecExportError(f"A digit's scale must lie in [{MIN_SCALE}, {MAX_SCALE}], found {scale}.")
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(digits.pixels), (count, len(CENTRES)))
    scales = generator.uniform(MIN_SCALE, MAX_SCALE, chosen.shape)
    shifts = generator.uniform(-1, 1, (*chosen.shape, 2))
    if scale is not None:
        chosen[:, 0] = np.arange(count) % len(digits.pixels)
        scales[:, slice(None) if every else 0] = scale
    room = np.minimum(MAX_SHIFT, (CELL_SIZE - scales * BOX_SIZE) / 2)
    return _draw(digits, chosen, scales, shifts * room[..., None])


def compose_centred(digits: SourceDigits, chosen: NDArray[np.int64], scales: NDArray[np.float64]) -> DigitImages:
    """Compose N images, with every digit at the centre of its cell.

    Images of equal digits therefore differ in the scales of the digits alone. Shifts would not allow this, because the
    largest digit fills its cell.

    Args:
        digits: the source digits.
        chosen: the places of each image's three digits in `digits`, (N, 3); the label names the first one.
        scales: the scale of each digit, (N, 3), in [0.4, 2].

    Raises:
        DecExportError: if a scale lies outside [0.4, 2].
    """
    if not ((scales >= MIN_SCALE) & (scales <= MAX_SCALE)).all():
        raise DecExportError(
            f"A digit's scale must lie in [{MIN_SCALE}, {MAX_SCALE}], found {scales.min():g} to {scales.max():g}."
        )
    return _draw(digits, chosen, scales, np.zeros((*chosen.shape, 2)))


def _draw(
    digits: SourceDigits, chosen: NDArray[np.int64], scales: NDArray[np.float64], shifts: NDArray[np.float64]
) -> DigitImages:
    # The ink is (N, digits, H, W). The digits of one image can be added, because their boxes do not overlap.
    ink = render(digits.pixels[chosen], CENTRES + shifts, scales)
    pixels = np.round(255 * ink.sum(axis=1).clip(0, 1)).astype(np.uint8)
    labels = digits.labels[chosen]
    owner = np.take_along_axis(labels[:, :, None, None], ink.argmax(axis=1)[:, None], axis=1)[:, 0]
    masks = np.where(pixels >= INK, owner, BACKGROUND).astype(np.uint8)
    return DigitImages(pixels, labels[:, 0], masks, digits.indices[chosen], scales, shifts)


def render(
    pixels: NDArray[np.float64], centres: NDArray[np.float64], scales: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draw digits (..., 8, 8) with centres (..., 2) in pixels and scales (...). The result (..., 64, 64) is in [0, 1].

    A digit of scale s covers a box of 16 s x 16 s pixels. Interpolation is bilinear, with antialiasing of digits that
    shrink.
    """
    columns = _interpolation(centres[..., 0], scales)
    rows = _interpolation(centres[..., 1], scales)
    return rows @ pixels @ np.swapaxes(columns, -1, -2)


def _interpolation(centre: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights (..., 64, 8) of a source digit's pixels for the pixels of a line."""
    per_source = (scale * BOX_SIZE / SOURCE_SIZE)[..., None]
    line = np.arange(IMAGE_SIZE) + 0.5
    position = (line - centre[..., None]) / per_source + SOURCE_SIZE / 2
    width = np.maximum(1, 1 / per_source)[..., None]
    distance = np.abs(position[..., None] - (np.arange(SOURCE_SIZE) + 0.5))
    weights = np.maximum(0, 1 - distance / width) / width
    inside = (position > 0) & (position < SOURCE_SIZE)
    return np.asarray(weights * inside[..., None])
