"""The corruptions by their names, and the corruption of one image."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dec_export.errors import DataError
from dec_export.evaluation.corruptions import blur, digital, noise, weather
from dec_export.evaluation.corruptions.base import Corrupt, Draw, unit_of

# A new corruption is a function of one of the modules of this folder, and its entry here.
CORRUPTIONS: dict[str, Corrupt] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
SEVERITIES = (1, 2, 3, 4, 5)
ALL = "all"


def corruption_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of corruptions, each once, where "all" stands for all. Raises DataError for another name."""
    unknown = next((name for name in names if name not in CORRUPTIONS and name != ALL), None)
    if unknown is not None:
        raise DataError(f"Unknown corruption '{unknown}', expected all or some of {', '.join(CORRUPTIONS)}.")
    return tuple(dict.fromkeys(found for name in names for found in (CORRUPTIONS if name == ALL else (name,))))


def corrupt(
    pixels: NDArray[np.uint8], corruption: str, severity: int, name: str = "", seed: int = 0
) -> NDArray[np.uint8]:
    """Return a corrupted image.

    Args:
        pixels: (H, W, 3) of any size.
        corruption: a name of `CORRUPTIONS`.
        severity: from 1 to 5.
        name: the name of the image. Equal names, seeds and corruptions have equal random numbers, at all severities, so
            that the severities of one image differ in nothing else.

    Raises:
        DataError: for another severity or corruption.
    """
    if severity not in SEVERITIES:
        raise DataError(f"A severity must be from 1 to 5, found {severity}.")
    if corruption not in CORRUPTIONS:
        raise DataError(f"Unknown corruption '{corruption}', expected one of {', '.join(CORRUPTIONS)}.")
    # A generator of NumPy takes several numbers as one seed.
    numbers = (seed, zlib.crc32(name.encode()), zlib.crc32(corruption.encode()))
    draw = Draw(severity - 1, np.random.default_rng(numbers), unit_of(*pixels.shape[:2]))
    changed = CORRUPTIONS[corruption](pixels.astype(np.float64) / 255, draw)
    return np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)
