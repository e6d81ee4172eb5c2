"""Corruptions by the processing of images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from dec_export.evaluation.corruptions.base import Draw, Values, smoothed


def contrast(values: Values, draw: Draw) -> Values:
    """Return the image nearer to the mean of each channel."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[draw.level]
    means = values.mean(axis=(0, 1))
    return np.asarray((values - means) * kept + means)


def elastic_transform(values: Values, draw: Draw) -> Values:
    """Return the image stretched and contracted: a random affine map, and a smooth random displacement.

    Strengths are parts of the shorter side: of the displacement, of its smoothing, and of the affine map.
    """
    strength, sigma, affine = (
        (2.0, 0.7, 0.1),
        (2.0, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[draw.level]
    height, width = values.shape[:2]
    side = min(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    places = np.stack([rows, columns]) + _affine_moves(rows, columns, affine * side, draw)
    for axis in range(2):
        field = draw.random.uniform(-1, 1, (height, width))
        # Smoothing divides noise by the pixels that it covers along an axis, and `unit` makes up for it.
        places[axis] += smoothed(field, sigma * side) * strength * side * draw.unit
    channels = [ndimage.map_coordinates(values[..., c], places, order=1, mode="mirror") for c in range(3)]
    return np.stack(channels, axis=2)


def _affine_moves(rows: Values, columns: Values, reach: float, draw: Draw) -> Values:
    """Return the moves (2, H, W) of an affine map that moves three points of a square in the centre by `reach` or less.

    The square has a third of the shorter side, as in the published corruption.
    """
    height, width = rows.shape
    third = max(min(height, width) // 3, 1)
    centre = np.array([height // 2, width // 2], np.float64)
    points = centre + third * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moves = draw.random.uniform(-reach, reach, (3, 2))
    solved = np.linalg.solve(np.column_stack([points, np.ones(3)]), moves)
    grid = np.stack([rows, columns, np.ones_like(rows)], axis=-1)
    return np.moveaxis(grid @ solved, -1, 0)


def pixelate(values: Values, draw: Draw) -> Values:
    """Return the image made smaller and then larger again."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[draw.level]
    image = _as_image(values)
    small = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    found = image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    return np.asarray(found, np.float64) / 255


def jpeg_compression(values: Values, draw: Draw) -> Values:
    """Return the image after JPEG of low quality."""
    quality = (25, 18, 15, 10, 7)[draw.level]
    file = io.BytesIO()
    _as_image(values).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=("JPEG",)), np.float64) / 255


def _as_image(values: Values) -> Image.Image:
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
