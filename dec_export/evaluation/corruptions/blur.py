"""Corruptions by blur."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dec_export.evaluation.corruptions.base import Draw, Values, filtered, motion_kernel, smoothed, zoomed


def defocus_blur(values: Values, draw: Draw) -> Values:
    """Return the image out of focus: every point is a disk."""
    radius = (3, 4, 6, 8, 10)[draw.level] * draw.unit
    half = int(np.ceil(radius)) + 1
    axis = np.arange(-half, half + 1)
    # A pixel at the edge of the disk belongs to it in part.
    disk = np.clip(radius + 0.5 - np.hypot(axis[:, None], axis), 0, 1)
    return filtered(values, disk / disk.sum())


def glass_blur(values: Values, draw: Draw) -> Values:
    """Return the image through frosted glass: blurred, with pixels taken from places nearby, and blurred again.

    The paper exchanges neighbouring pixels one after the other; here all pixels take their values at once.
    """
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[draw.level]
    found = smoothed(values, sigma * draw.unit)
    height, width = values.shape[:2]
    grid = np.mgrid[:height, :width].astype(np.float64)
    for _ in range(times):
        places = grid + draw.random.uniform(-reach, reach, (2, height, width)) * draw.unit
        found = np.stack(
            [ndimage.map_coordinates(found[..., c], places, order=1, mode="nearest") for c in range(3)], axis=2
        )
    return smoothed(found, sigma * draw.unit)


def motion_blur(values: Values, draw: Draw) -> Values:
    """Return the image as taken by a camera that moves, within 45 degrees of horizontally."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[draw.level]
    # A kernel has 2 radius + 1 weights, of which the half Gaussian uses all.
    length = 2 * radius * draw.unit
    return filtered(values, motion_kernel(length, sigma * draw.unit, draw.random.uniform(-45, 45)))


def zoom_blur(values: Values, draw: Draw) -> Values:
    """Return the mean of the image and of magnified ones, as when a camera moves towards its object."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[draw.level]
    factors = np.arange(1, last, step)
    total = values.copy()
    for factor in factors:
        total += zoomed(values, factor)
    return total / (len(factors) + 1)
