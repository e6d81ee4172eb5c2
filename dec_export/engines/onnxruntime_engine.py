"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dec_export.errors import EngineError
from dec_export.onnx_export.export import with_outputs

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """Runs a bundle's `model.onnx` as it is; phis are read from a second session, so the model stays as served."""

    name = "onnxruntime"

    def __init__(self, path: Path, *, expose_phi: bool = False, threads: int | None = None) -> None:
        self._threads = threads
        self._session = self._open(str(path))
        self._phi_session: onnxruntime.InferenceSession | None = None
        self._phi_names: list[str] = []
        if expose_phi:
            self._open_phi(path)

    def _open(self, model: str | bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(model, options, providers=[_PROVIDER])
        except Exception as error:  # its exception classes are private; any of them means the same here
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {error}") from error

    def _open_phi(self, path: Path) -> None:
        proto = onnx.load(path)
        tensors = [value.name for value in [*proto.graph.value_info, *proto.graph.output]]
        self._phi_names = sorted(name for name in tensors if name.startswith(("phi_x_", "phi_y_")))
        outputs = {output.name for output in self._session.get_outputs()}
        if not set(self._phi_names) <= outputs:
            self._phi_session = self._open(with_outputs(proto, self._phi_names).SerializeToString())

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        outputs = self._run(self._session, None, image)
        if self._phi_session is not None:
            outputs |= self._run(self._phi_session, self._phi_names, image)
        return outputs

    @staticmethod
    def _run(
        session: onnxruntime.InferenceSession, names: list[str] | None, image: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        names = names or [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))

    def describe(self) -> dict[str, Any]:
        return {
            "runtime": "ONNX Runtime",
            "version": onnxruntime.__version__,
            "device": "cpu",
            "providers": self._session.get_providers(),
            "threads": self._threads or os.cpu_count(),
        }
