"""Corruptions by weather."""

from __future__ import annotations

import numpy as np

from dec_export.evaluation.corruptions.base import Draw, Values, cloud, filtered, motion_kernel, smoothed, zoomed

_BLUISH = np.array([0.88, 0.95, 1.0])
_GREY = np.array([0.299, 0.587, 0.114])


def snow(values: Values, draw: Draw) -> Values:
    """Return the image in falling snow: a pale image, with streaks of flakes that fall in one direction."""
    mean, deviation, size, least, radius, sigma, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[draw.level]
    flakes = zoomed(draw.random.normal(mean, deviation, values.shape[:2]), max(1.0, size * draw.unit))
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1))
    kernel = motion_kernel(2 * radius * draw.unit, sigma * draw.unit, draw.random.uniform(-135, -45))
    streaks = filtered(flakes, kernel)[..., None]
    pale = np.maximum(values, (values @ _GREY)[..., None] * 1.5 + 0.5)
    return np.asarray(kept * values + (1 - kept) * pale + streaks + streaks[::-1, ::-1])


def frost(values: Values, draw: Draw) -> Values:
    """Return the image behind frost.

    The published corruption lays photographs of frost over the image. This frost is made instead: needles of ice that
    grow in several directions, on a rime that is denser where a cloud is. It is not the published one.
    """
    kept, strength = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[draw.level]
    ice = _ice(values.shape[0], values.shape[1], draw)
    return np.asarray(kept * values + strength * ice[..., None] * _BLUISH)


def _ice(height: int, width: int, draw: Draw) -> Values:
    """Return a texture of ice (height, width) in [0, 1]."""
    density = cloud(height, width, 1.6, draw.random)
    needles = np.zeros((height, width))
    for length, share in ((60, 0.001), (30, 0.004), (12, 0.02)):
        for degrees in draw.random.uniform(0, 360, 3):
            seeds = draw.random.random((height, width)) < share / max(draw.unit, 0.05)
            kernel = motion_kernel(length * draw.unit, length * draw.unit / 2, degrees)
            needles = np.maximum(needles, np.clip(filtered(seeds.astype(float), kernel) / kernel.max(), 0, 1))
    grain = smoothed(draw.random.random((height, width)), 0.6 * draw.unit) - 0.5
    return np.clip(0.15 + 0.6 * density**1.5 + 0.75 * needles * (0.3 + 0.7 * density) + 0.4 * grain, 0, 1)


def fog(values: Values, draw: Draw) -> Values:
    """Return the image in fog, which is a fractal cloud."""
    strength, fading = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[draw.level]
    largest = float(values.max())
    clouds = cloud(values.shape[0], values.shape[1], fading, draw.random)
    return np.asarray((values + strength * clouds[..., None]) * largest / (largest + strength))


def brightness(values: Values, draw: Draw) -> Values:
    """Return the image with a greater value in HSV, of the same hue and saturation."""
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[draw.level]
    value = values.max(axis=2, keepdims=True)
    brighter = np.clip(value + added, 0, 1)
    return np.asarray(np.where(value > 0, values * brighter / np.where(value > 0, value, 1), brighter))
