"""The engine that runs a deserialised TensorRT plan."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.engines.base import EngineDetails, check_image
from dec_export.engines.tensorrt.flavours import Flavour, load_backend
from dec_export.engines.tensorrt.log import Log
from dec_export.engines.tensorrt.plan import PlanEntry, check_plan, dotted
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, find_gpu
from dec_export.names import is_phi


@dataclass(frozen=True)
class TensorRTDetails(EngineDetails):
    """The details of a TensorRT engine.

    compute_capability: that of the GPU, such as "8.9". batch: the smallest, the most frequent and the largest batch.
    """

    compute_capability: str
    batch: tuple[int, int, int]


class TensorRTEngine:
    """An engine that runs a plan on the GPU with batches within the plan's profile.

    Raises EngineError before the plan is deserialised when it was built for another machine. Polygraphy's runner copies
    images to the GPU and results back on every call. The code in a version-compatible plan runs only with
    `allow_host_code`.
    """

    def __init__(
        self,
        path: Path,
        flavour: Flavour,
        entry: PlanEntry,
        image_size: int,
        outputs: Sequence[str],
        *,
        allow_host_code: bool = False,
    ) -> None:
        found = find_gpu()
        check_plan(path, flavour, entry, found, allow_host_code=allow_host_code)
        assert found is not None  # `check_plan` has raised an error otherwise.
        self._gpu: Gpu = found
        self.name: str = flavour.name
        self._flavour, self._entry, self._size = flavour, entry, image_size
        self.exposes_phi = any(is_phi(name) for name in outputs)
        self.smallest_batch = entry.options.batch[0]
        self.largest_batch: int | None = entry.options.batch[2]
        self._runner = self._activate(path, allow_host_code)
        # Threads take turns, because there is one execution context with one set of buffers.
        self._lock = threading.Lock()
        weakref.finalize(self, self._runner.deactivate)

    def _activate(self, path: Path, allow_host_code: bool) -> Any:  # Polygraphy has no types.
        backend = load_backend(self._flavour)
        log = Log(backend.trt)
        try:
            # Polygraphy's own loader would always allow host code.
            runtime = backend.trt.Runtime(log.logger)
            runtime.engine_host_code_allowed = allow_host_code
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise EngineError(f"{self._flavour.label} cannot load '{path}': {log.reason()}")
            runner = backend.loaders.TrtRunner(engine)
            runner.activate()
        except EngineError:
            raise
        except Exception as error:  # TensorRT, Polygraphy and CUDA have exception classes of their own.
            raise EngineError(f"{self._flavour.label} cannot load '{path}': {error}; {log.reason()}") from error
        return runner

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_image(image, self._size)
        smallest, _, largest = self._entry.options.batch
        if not smallest <= len(image) <= largest:
            raise EngineError(
                f"This engine takes batches of {smallest} to {largest} images, found "
                f"{len(image)}: build it with another --batch."
            )
        with self._lock:
            try:
                outputs = self._runner.infer({"image": np.ascontiguousarray(image)})
            except Exception as error:  # See the exceptions in `_activate`.
                raise EngineError(f"{self._flavour.label} cannot run a batch of {len(image)}: {error}") from error
            # The next call of the runner overwrites these arrays.
            return {name: np.array(value) for name, value in outputs.items()}

    def describe(self) -> TensorRTDetails:
        capability = dotted(self._gpu.compute_capability)
        return TensorRTDetails(
            self._flavour.label, self._entry.version, self._gpu.name, capability, self._entry.options.batch
        )
