"""Small data sets for tests, in folders of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dec_export.data.images import synthetic_images
from dec_export.engines.base import RunOptions
from dec_export.evaluation.options import EvaluationOptions

CLASSES = 10


def class_tree(folder: Path, count: int, size: int = 176) -> Path:
    """Write smooth images of several heights into the folders of ten classes."""
    for number, array in enumerate(synthetic_images(size, count, seed=3).array):
        pixels = np.clip((array + 1) * 127.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)[: size - number % 5]
        path = folder / f"class{number % CLASSES}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def options(journal: Path, **others: object) -> EvaluationOptions:
    """Return options with small chunks, one thread, and a journal of the test's own."""
    fields = {"engine": "onnxruntime", "strengths": (0.25,), "batch": 2, "run": RunOptions(threads=1)}
    return EvaluationOptions(**{**fields, "journal": journal, **others})
