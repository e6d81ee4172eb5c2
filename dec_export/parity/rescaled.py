"""Images whose objects change their scales while nothing else changes, made from the digits.

They are the images of the published measures `lscal_eq_error` and consistency.
"""

from __future__ import annotations

import numpy as np

from dec_export.data.digits import CENTRES, MAX_SCALE, MIN_SCALE, compose_centred, source_digits
from dec_export.data.preprocessing import Preprocessing
from dec_export.parity.inputs import RescaledImages
from dec_export.parity.measures.labelled import has_labels
from dec_export.recipe.model import Recipe
from dec_export.tasks import task_named

IMAGES, COPIES = 16, 4
COMMON_SCALES = (0.5, 1.0, 1.5, 2.0)
SEED = 13


def rescaled_images(recipe: Recipe, preprocessing: Preprocessing, count: int = IMAGES) -> RescaledImages | None:
    """Return `count` test images with their copies, or None if the recipe has no digits.

    Each digit of a copy has a scale of its own, drawn uniformly from [0.4, 2], if the prediction is one for the image.
    If it is one for each pixel, all digits of a copy have one of `COMMON_SCALES`.
    """
    if not has_labels(recipe):
        return None
    digits, task, generator = source_digits("test"), task_named(recipe.task), np.random.default_rng(SEED)
    chosen = generator.integers(0, len(digits.pixels), (count, len(CENTRES)))
    if task.labels_pixels:
        scales = np.tile(np.array(COMMON_SCALES)[:, None], (count, 1, len(CENTRES)))
    else:
        scales = generator.uniform(MIN_SCALE, MAX_SCALE, (count, COPIES, len(CENTRES)))
    originals = compose_centred(digits, chosen, np.ones(chosen.shape))
    several = np.repeat(chosen, scales.shape[1], axis=0)
    copies = compose_centred(digits, several, scales.reshape(several.shape))
    inputs, labels = copies.inputs(preprocessing.mean, preprocessing.std), task.labels_of(copies)
    return RescaledImages(
        originals=originals.inputs(preprocessing.mean, preprocessing.std),
        copies=inputs.reshape(*scales.shape[:2], *inputs.shape[1:]),
        labels=labels.reshape(*scales.shape[:2], *labels.shape[1:]),
        scales=scales,
    )
