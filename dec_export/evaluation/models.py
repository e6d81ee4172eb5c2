"""The models that an evaluation runs on the same images: an engine of a bundle, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.data.preprocessing import Preprocessing
from dec_export.engines.base import Engine, RunOptions
from dec_export.engines.registry import load
from dec_export.errors import DataError
from dec_export.names import LOGITS
from dec_export.parity.batches import in_padded_batches, nearest_batch
from dec_export.tasks.arrays import Array

# The baseline that is the bundle's own float32 reference.
REFERENCE = "torch"


@dataclass(frozen=True)
class ModelSource:
    """Where a model of an evaluation comes from; another process can load it again.

    name: its name in tables. bundle: the folder of its bundle. engine: the name of its engine.
    """

    name: str
    bundle: Path
    engine: str
    run: RunOptions = RunOptions()

    def load(self) -> Model:
        """Load the engine. Raises EngineError or BundleError when that is not possible here."""
        bundle = Bundle.load(self.bundle)
        engine = load(bundle, self.engine, options=self.run)
        return Model(self.name, engine, bundle.preprocessing)


@dataclass(frozen=True)
class Model:
    """A loaded model. preprocessing: how it turns pixels into its input."""

    name: str
    engine: Engine
    preprocessing: Preprocessing

    def logits(self, inputs: NDArray[np.float32], batch: int) -> Array:
        """Return the logits of model inputs (N, 3, H, W), in full batches of about `batch` images."""
        return in_padded_batches(self.engine, inputs, nearest_batch(self.engine, batch), traced=0)[LOGITS]


def model_sources(bundle: Bundle, engine: str, baselines: Sequence[str], run: RunOptions) -> tuple[ModelSource, ...]:
    """Return the sources of the engine and of its baselines; the first is the engine.

    Raises DataError when a baseline is for another task or other classes, or is the engine itself.
    """
    found = [ModelSource(engine, bundle.path, engine, run)]
    for baseline in dict.fromkeys(baselines):
        if baseline == REFERENCE:
            # The options of a GPU engine do not concern the reference.
            source = ModelSource(REFERENCE, bundle.path, REFERENCE, RunOptions(threads=run.threads))
        else:
            other = Bundle.load(baseline)
            _check_same_task(bundle, other)
            source = ModelSource(f"{other.path.resolve().name} ({engine})", other.path, engine, run)
        if source.name not in {model.name for model in found}:
            found.append(source)
    return tuple(found)


def _check_same_task(bundle: Bundle, other: Bundle) -> None:
    ours, theirs = bundle.recipe, other.recipe
    if (ours.task, ours.backbone.num_classes) != (theirs.task, theirs.backbone.num_classes):
        raise DataError(
            f"The baseline '{other.path}' is for {theirs.task} with {theirs.backbone.num_classes} classes, and "
            f"'{bundle.path}' for {ours.task} with {ours.backbone.num_classes}: compare models of one task."
        )
