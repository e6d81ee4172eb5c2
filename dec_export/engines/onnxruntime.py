"""ONNX Runtime, on the CPU or through its CUDA provider."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dec_export.engines.base import CPU_ENGINES, CUDA_ENGINE, check_image
from dec_export.errors import EngineError
from dec_export.onnx_export.passes.widen import widen_bfloat16
from dec_export.onnx_export.tracing import inner_names, with_outputs

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 keeps 10 bits of a float32's 23; the graph says where fewer are wanted.
_CUDA_OPTIONS = {"use_tf32": "0"}


class OnnxRuntimeEngine:
    """Runs a `model.onnx` as it is; tensors in `also` are read from a second session, so the model stays as served.

    inner: all tensors that `onnx_export.names` names are in `also`.

    cuda: use the CUDA provider, and refuse to start without it unless `cpu_fallback` says otherwise. bfloat16: the
    model holds such tensors; the CPU provider has no kernels for them, so there it runs as `onnx_export.widen` writes
    it.
    """

    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        also: Sequence[str] = (),
        inner: bool = False,
        threads: int | None = None,
        cuda: bool = False,
        cpu_fallback: bool = False,
        bfloat16: bool = False,
    ) -> None:
        self.name = CUDA_ENGINE if cuda else CPU_ENGINES[0]
        self._threads = threads
        self._providers = _providers(cuda, cpu_fallback)
        self._cuda_required = cuda and not cpu_fallback
        self._emulated = False
        if bfloat16 and not self._cuda_required:
            # The CPU provider would be left with nodes that it cannot run.
            self._emulated, self._providers = True, [_CPU]
            model = widen_bfloat16(_loaded(model))
        self._session = self._open(model)
        self._names = [output.name for output in self._session.get_outputs()]
        self._size = self._session.get_inputs()[0].shape[-1]
        self._also: list[str] = []
        if also or inner:
            proto = _loaded(model)
            wanted = dict.fromkeys([*also, *(inner_names(proto) if inner else [])])
            self._also = [name for name in wanted if name not in self._names]
            if self._also:
                self._also_session = self._open(with_outputs(proto, self._also))
        self.exposes_phi = any(name.startswith("phi_") for name in [*self._names, *self._also])

    def _open(self, model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        # Planning one block for all activations, anew for every batch size, holds up to twice the memory and saves no
        # time.
        options.enable_mem_pattern = False
        try:
            source = str(model) if isinstance(model, Path) else model.SerializeToString()
            session = onnxruntime.InferenceSession(source, options, providers=self._providers)
        except Exception as error:  # its exception classes are private; any of them means the same here
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {error}") from error
        if self._cuda_required and _CUDA not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime's CUDA provider does not start here: {_why_not_cuda()}; "
                "allow --cpu-fallback to do without."
            )
        return session

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
        providers = self._session.get_providers()
        return {
            "runtime": "ONNX Runtime",
            "version": onnxruntime.__version__,
            "device": "cuda" if providers[0] == _CUDA else "cpu",
            "providers": providers,
            "threads": self._threads,
            **({"bfloat16": "held in float32, rounded after every operator"} if self._emulated else {}),
        }


def _loaded(model: Path | onnx.ModelProto) -> onnx.ModelProto:
    return onnx.load(model) if isinstance(model, Path) else model


def _providers(cuda: bool, cpu_fallback: bool) -> list[Any]:
    """What a session is asked for; EngineError when CUDA is wanted, cannot be had, and nothing else is allowed."""
    if not cuda:
        return [_CPU]
    if _CUDA not in onnxruntime.get_available_providers():
        if cpu_fallback:
            return [_CPU]
        raise EngineError(
            "This ONNX Runtime was built without CUDA: pip install onnxruntime-gpu, or allow --cpu-fallback."
        )
    if hasattr(onnxruntime, "preload_dlls"):
        import torch  # noqa: F401 - brings the CUDA libraries that the provider is linked to

        # What it would log on stderr is part of the sentence when the provider does not start.
        onnxruntime.set_default_logger_severity(4)
        # It prints what it misses, to where --json has one object and nothing else.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    return [(_CUDA, _CUDA_OPTIONS), *([_CPU] if cpu_fallback else [])]


def _why_not_cuda() -> str:
    """What the provider's library lacks, as the system's loader says it."""
    from dec_export.gpu import absence, find_gpu

    if find_gpu() is None:
        return absence()
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for library in folder.glob("*onnxruntime_providers_cuda.*"):
            ctypes.CDLL(str(library))
    except OSError as error:
        return f"{error} (pip install 'onnxruntime-gpu[cuda,cudnn]')"
    return "its libraries load, but it finds no device that it can use; -v shows what it says"
