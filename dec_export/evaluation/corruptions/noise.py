"""Corruptions by noise."""

from __future__ import annotations

import numpy as np

from dec_export.evaluation.corruptions.base import Draw, Values


def gaussian_noise(values: Values, draw: Draw) -> Values:
    """Return the image with normal noise, as in low light."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[draw.level]
    return values + draw.random.normal(scale=deviation, size=values.shape)


def shot_noise(values: Values, draw: Draw) -> Values:
    """Return the image as counts of few photons."""
    photons = (60, 25, 12, 5, 3)[draw.level]
    return np.asarray(draw.random.poisson(values * photons) / photons)


def impulse_noise(values: Values, draw: Draw) -> Values:
    """Return the image with some values black or white, equally often."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[draw.level]
    chosen = draw.random.random(values.shape) < share
    return np.where(chosen, draw.random.integers(0, 2, values.shape).astype(np.float64), values)
