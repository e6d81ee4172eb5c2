"""The runs of an engine on many images, in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.engines.base import Engine
from dec_export.names import is_map, is_output

# Tensors of a model by their names; their numbers are of every format that models compute in, hence Any.
Outputs = dict[str, NDArray[Any]]

REFERENCE_BATCH = 4
# The inner tensors of more images would show nothing else, and would fill the memory.
TRACED_IMAGES = 8
# This batch size is enough to show that samples do not mix; larger batches would only cost memory.
_LARGEST_BATCH = 8


def batch_sizes(engine: Engine, samples: int) -> list[int]:
    """Return a small and a larger batch size that the engine takes; they are one where it takes only one."""
    largest = min(max(2, samples), _LARGEST_BATCH, engine.largest_batch or _LARGEST_BATCH)
    return sorted({engine.smallest_batch, max(engine.smallest_batch, largest)})


def nearest_batch(engine: Engine, batch: int) -> int:
    """Return the batch size nearest to `batch` that the engine takes."""
    return max(engine.smallest_batch, min(batch, engine.largest_batch or batch))


def in_padded_batches(engine: Engine, images: NDArray[np.float32], batch: int, traced: int = TRACED_IMAGES) -> Outputs:
    """Apply `in_batches` with full batches only; images are repeated to fill the last batch."""
    missing = -len(images) % batch
    padded = np.concatenate([images, np.resize(images, (missing, *images.shape[1:]))]) if missing else images
    return {name: value[: len(images)] for name, value in in_batches(engine, padded, batch, traced).items()}


def in_batches(
    engine: Engine, images: NDArray[np.float32], batch: int = REFERENCE_BATCH, traced: int = TRACED_IMAGES
) -> Outputs:
    """Return the outputs for all images (N, 3, H, W), and the inner tensors of the first `traced` images.

    If `traced` is 0, feature maps that are outputs are left out as well.
    """
    parts: dict[str, list[NDArray[Any]]] = {}  # like `Outputs`, but in parts
    starts = range(0, len(images), batch)
    for start in starts:
        for name, value in engine(images[start : start + batch]).items():
            # A caller that needs no inner tensors does not need the feature maps either.
            if (is_output(name) and (traced or not is_map(name))) or start < traced:
                parts.setdefault(name, []).append(value)
    whole = {True: len(starts), False: len([start for start in starts if start < traced])}
    kept = {name: found for name, found in parts.items() if len(found) == whole[is_output(name)]}
    return {name: np.concatenate(found)[: None if is_output(name) else traced] for name, found in kept.items()}
