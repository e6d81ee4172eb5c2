"""What all corruptions share: the state of one, and filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

Values = NDArray[np.float64]

# The shorter side of the images for which lengths are stated.
_USUAL_SIDE = 224


@dataclass(frozen=True)
class Draw:
    """How one image is corrupted.

    level: the severity from 0 to 4. random: the numbers of this image. unit: the pixels that stand for one pixel of an
    image whose shorter side is 224.
    """

    level: int
    random: np.random.Generator
    unit: float


# A corruption changes values (H, W, 3) in [0, 1]; the result may lie outside, where it is cut.
Corrupt = Callable[[Values, Draw], Values]


def unit_of(height: int, width: int) -> float:
    """Return the pixels that stand for one pixel of an image whose shorter side is 224."""
    return min(height, width) / _USUAL_SIDE


def filtered(values: Values, kernel: Values) -> Values:
    """Return values (H, W, ...) filtered by an odd kernel (h, w); the image goes on mirrored beyond its edges."""
    rows, columns = (side // 2 for side in kernel.shape)
    channels = values.reshape(*values.shape[:2], -1)
    padded = np.pad(channels, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")
    found = fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    return np.asarray(found.reshape(values.shape))


def smoothed(values: Values, sigma: float) -> Values:
    """Return values (H, W, ...) after a Gaussian blur along their first two axes."""
    return np.asarray(ndimage.gaussian_filter(values, sigma, mode="nearest", axes=(0, 1)))


def zoomed(values: Values, factor: float) -> Values:
    """Return values (H, W, ...) magnified about their centre, with linear interpolation."""
    for axis in range(2):
        centre = (values.shape[axis] - 1) / 2
        places = centre + (np.arange(values.shape[axis]) - centre) / factor
        values = _interpolated(values, places, axis)
    return values


def motion_kernel(radius: float, sigma: float, degrees: float) -> Values:
    """Return the kernel of a motion blur that fades along a line: (side, side), of sum 1.

    The weights along the line are those of one half of a Gaussian of deviation sigma, up to `radius` pixels.
    """
    steps = np.linspace(0, radius, max(2, int(np.ceil(2 * radius)) + 1))
    weights = np.exp(-(steps**2) / (2 * max(sigma, 1e-6) ** 2))
    angle = np.deg2rad(degrees)
    return _line(steps * np.sin(angle), steps * np.cos(angle), weights)


def _line(rows: Values, columns: Values, weights: Values) -> Values:
    """Return a kernel with weights at points relative to its centre, each divided among the four nearest pixels."""
    half = int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max()))) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    for dy, share_y in ((0, 1 - down), (1, down)):
        for dx, share_x in ((0, 1 - right), (1, right)):
            np.add.at(kernel, (half + top + dy, half + left + dx), weights * share_y * share_x)
    return np.asarray(kernel / kernel.sum())


def cloud(height: int, width: int, fading: float, random: np.random.Generator) -> Values:
    """Return a fractal cloud (height, width) in [0, 1]: random grids of 2, 3, 5, 9, ... points a side.

    Each grid's amplitude is that of the one before divided by `fading`, as in the midpoint displacement of the paper's
    plasma fractals.
    """
    side = max(height, width, 2)
    total = np.zeros((side, side))
    octaves = int(np.ceil(np.log2(side)))
    for octave in range(octaves + 1):
        points = 2**octave + 1
        grid = random.uniform(-1, 1, (points, points))
        places = np.linspace(0, points - 1, side)
        total += _interpolated(_interpolated(grid, places, 0), places, 1) / fading**octave
    total -= total.min()
    return np.asarray(total[:height, :width] / max(float(total.max()), 1e-12))


def _interpolated(values: Values, places: Values, axis: int) -> Values:
    """Return values at places along an axis, with linear interpolation."""
    last = values.shape[axis] - 1
    low = np.clip(np.floor(places).astype(int), 0, max(last - 1, 0))
    share = np.expand_dims(places - low, tuple(range(1, values.ndim - axis)))
    found = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, last), axis) * share
    return np.asarray(found)
