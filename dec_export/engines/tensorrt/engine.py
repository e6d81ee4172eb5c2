"""A deserialised TensorRT engine that runs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.engines.base import check_image
from dec_export.engines.tensorrt.flavours import Flavour, load_backend
from dec_export.engines.tensorrt.plan import PlanEntry, check_plan, dotted
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, find_gpu


class TensorRTEngine:
    """Runs a plan on the GPU, on batches within its profile.

    Raises EngineError, before a byte of the plan is deserialised, when it is not for this machine. Polygraphy's
    runner copies images to the GPU and results back on every call.
    """

    def __init__(self, path: Path, flavour: Flavour, entry: PlanEntry, image_size: int, outputs: Sequence[str]) -> None:
        found = find_gpu()
        check_plan(path, flavour, entry, found)
        assert found is not None  # check_plan asks for one
        self._gpu: Gpu = found
        self.name = flavour.name
        self._flavour, self._entry, self._size = flavour, entry, image_size
        self.exposes_phi = any(name.startswith("phi_") for name in outputs)
        self.smallest_batch = entry.options.batch[0]
        self.largest_batch: int | None = entry.options.batch[2]
        self._runner = self._activate(path)

    def _activate(self, path: Path) -> Any:
        backend = load_backend(self._flavour)
        from polygraphy.exception import PolygraphyException

        try:
            runner = backend.loaders.TrtRunner(backend.loaders.EngineFromBytes(path.read_bytes()))
            runner.activate()
        except PolygraphyException as error:
            raise EngineError(f"{self._flavour.label} {self._entry.version} cannot load '{path}': {error}") from error
        weakref.finalize(self, runner.deactivate)
        return runner

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        from polygraphy.exception import PolygraphyException

        check_image(image, self._size)
        smallest, _, largest = self._entry.options.batch
        if not smallest <= len(image) <= largest:
            raise EngineError(
                f"This engine takes batches of {smallest} to {largest} images, found "
                f"{len(image)}: build it with another --batch."
            )
        try:
            outputs = self._runner.infer({"image": np.ascontiguousarray(image)})
        except PolygraphyException as error:
            raise EngineError(f"{self._flavour.label} cannot run a batch of {len(image)}: {error}") from error
        # The runner writes into the same arrays at the next call.
        return {name: np.array(value) for name, value in outputs.items()}

    def describe(self) -> dict[str, Any]:
        return {
            "runtime": self._flavour.label,
            "version": self._entry.version,
            "device": self._gpu.name,
            "compute_capability": dotted(self._gpu.compute_capability),
            "batch": list(self._entry.options.batch),
        }
