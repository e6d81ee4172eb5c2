"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dec_export.engines.base import check_image
from dec_export.errors import EngineError
from dec_export.onnx_export.export import with_outputs

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """Runs a `model.onnx` as it is; tensors in `also` are read from a second session, so the model stays as served."""

    name = "onnxruntime"

    def __init__(self, model: Path | onnx.ModelProto, *, also: Sequence[str] = (), threads: int | None = None) -> None:
        self._threads = threads
        self._session = self._open(str(model) if isinstance(model, Path) else model.SerializeToString())
        self._names = [output.name for output in self._session.get_outputs()]
        self._size = self._session.get_inputs()[0].shape[-1]
        self._also = [name for name in also if name not in self._names]
        if self._also:
            proto = onnx.load(model) if isinstance(model, Path) else model
            self._also_session = self._open(with_outputs(proto, self._also).SerializeToString())

    def _open(self, model: str | bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(model, options, providers=[_PROVIDER])
        except Exception as error:  # its exception classes are private; any of them means the same here
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {error}") from error

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_image(image, self._size)
        outputs = self._run(self._session, self._names, image)
        if self._also:
            outputs |= self._run(self._also_session, self._also, image)
        return outputs

    @staticmethod
    def _run(
        session: onnxruntime.InferenceSession, names: list[str], image: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        try:
            return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime cannot run the model on a batch of {len(image)}: {error}") from error

    def describe(self) -> dict[str, Any]:
        return {
            "runtime": "ONNX Runtime",
            "version": onnxruntime.__version__,
            "device": "cpu",
            "providers": self._session.get_providers(),
            "threads": self._threads,
        }
