"""Running an engine on many images, a few at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.engines.base import Engine
from dec_export.names import is_map, is_output

Outputs = dict[str, NDArray[Any]]

REFERENCE_BATCH = 4
# Of more images, inner tensors would show the same, and fill the memory.
TRACED_IMAGES = 8
# Enough to show that samples do not mix; more would only cost memory.
_LARGEST_BATCH = 8


def batch_sizes(engine: Engine, samples: int) -> list[int]:
    """A small batch and a larger one, within what the engine takes."""
    largest = min(max(2, samples), _LARGEST_BATCH, engine.largest_batch or _LARGEST_BATCH)
    return sorted({engine.smallest_batch, max(engine.smallest_batch, largest)})


def nearest_batch(engine: Engine, batch: int) -> int:
    """The batch size that the engine takes and that is nearest to `batch`."""
    return max(engine.smallest_batch, min(batch, engine.largest_batch or batch))


def in_padded_batches(engine: Engine, images: NDArray[np.float32], batch: int, traced: int = TRACED_IMAGES) -> Outputs:
    """`in_batches` for an engine that needs full batches: images are repeated to fill the last one."""
    missing = -len(images) % batch
    padded = np.concatenate([images, np.resize(images, (missing, *images.shape[1:]))]) if missing else images
    return {name: value[: len(images)] for name, value in in_batches(engine, padded, batch, traced).items()}


def in_batches(
    engine: Engine, images: NDArray[np.float32], batch: int = REFERENCE_BATCH, traced: int = TRACED_IMAGES
) -> Outputs:
    """Outputs for all images (N, 3, H, W), and for the first `traced` of them the inner tensors that the engine shows.

    With `traced` 0, feature maps that are outputs are left out as well.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    starts = range(0, len(images), batch)
    for start in starts:
        for name, value in engine(images[start : start + batch]).items():
            # Without inner tensors, the maps of all images are of no use either.
            if (is_output(name) and (traced or not is_map(name))) or start < traced:
                parts.setdefault(name, []).append(value)
    whole = {True: len(starts), False: len([start for start in starts if start < traced])}
    kept = {name: found for name, found in parts.items() if len(found) == whole[is_output(name)]}
    return {name: np.concatenate(found)[: None if is_output(name) else traced] for name, found in kept.items()}
