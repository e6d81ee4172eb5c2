"""The engines of ONNX Runtime, on the CPU and with its CUDA provider."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any  # ONNX Runtime ships no types

from dec_export.engines.base import EngineDetails, RunOptions, Shown, check_image
from dec_export.engines.spec import Availability, EngineSpec, unavailable, works
from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.gpu import Gpu, find_gpu, why_no_gpu
from dec_export.names import is_phi, phi_names

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime
    from numpy.typing import NDArray

    from dec_export.bundle.store import Bundle

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 keeps only 10 of the 23 bits of a float32's fraction, and the graph decides where fewer bits are used.
_CUDA_OPTIONS = {"use_tf32": "0"}


@dataclass(frozen=True)
class OnnxRuntimeDetails(EngineDetails):
    """The details of ONNX Runtime.

    providers: the session's providers, the preferred one first. threads: the number of threads, or None when the
    runtime chooses it.
    """

    providers: tuple[str, ...]
    threads: int | None


@dataclass(frozen=True)
class EmulatedDetails(OnnxRuntimeDetails):
    """The details of ONNX Runtime for a model in bfloat16, for which the CPU provider has no kernels.

    bfloat16: how the CPU provider computes in this format.
    """

    bfloat16: str = "held in float32, rounded after every operator"


class OnnxRuntimeEngine:
    """An engine that runs an unchanged ONNX model. It reads the tensors in `extra` from a second session.

    inner: whether `extra` holds all tensors that `dec_export.names` names. cuda: whether the engine uses the CUDA
    provider; without that provider, it starts only with `cpu_fallback`. bfloat16: whether the model holds such tensors;
    the CPU provider has no kernels for them, so it runs the model that `onnx_export.passes.widen` writes.
    """

    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        extra: Sequence[str] = (),
        inner: bool = False,
        threads: int | None = None,
        cuda: bool = False,
        cpu_fallback: bool = False,
        bfloat16: bool = False,
    ) -> None:
        self.name = CUDA_SPEC.name if cuda else CPU_SPEC.name
        self._threads = threads
        self._providers = _providers(cuda, cpu_fallback)
        self._cuda_required = cuda and not cpu_fallback
        self._emulated = False
        if bfloat16 and not self._cuda_required:
            from dec_export.onnx_export.passes.widen import widen_bfloat16

            # The CPU provider cannot run all nodes.
            self._emulated, self._providers = True, [_CPU]
            model = widen_bfloat16(_loaded(model))
        self._session = self._open(model)
        self._names = [output.name for output in self._session.get_outputs()]
        self._size = self._session.get_inputs()[0].shape[-1]
        self._extra: list[str] = []
        if extra or inner:
            self._show(model, extra, inner)
        self.exposes_phi = any(is_phi(name) for name in [*self._names, *self._extra])

    def _show(self, model: Path | onnx.ModelProto, extra: Sequence[str], inner: bool) -> None:
        """Open the second session if there is a tensor to read from it."""
        from dec_export.onnx_export.tracing import inner_names, with_outputs

        proto = _loaded(model)
        wanted = dict.fromkeys([*extra, *(inner_names(proto) if inner else [])])
        self._extra = [name for name in wanted if name not in self._names]
        if self._extra:
            self._extra_session = self._open(with_outputs(proto, self._extra))

    def _open(self, model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3
        # ONNX Runtime would plan one block for all activations of every batch size. This takes up to twice the memory
        # and saves no time.
        options.enable_mem_pattern = False
        try:
            source = str(model) if isinstance(model, Path) else model.SerializeToString()
            session = onnxruntime.InferenceSession(source, options, providers=self._providers)
        except Exception as error:  # ONNX Runtime's exception classes are private.
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {error}") from error
        if self._cuda_required and _CUDA not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime's CUDA provider does not start here: {_why_not_cuda()}; "
                "use --cpu-fallback to run on the CPU."
            )
        return session

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_image(image, self._size)
        outputs = self._run(self._session, self._names, image)
        if self._extra:
            outputs |= self._run(self._extra_session, self._extra, image)
        return outputs

    @staticmethod
    def _run(
        session: onnxruntime.InferenceSession, names: list[str], image: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        try:
            return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))
        except Exception as error:  # See the exceptions in `_open`.
            raise EngineError(f"ONNX Runtime cannot run the model on a batch of {len(image)}: {error}") from error

    def describe(self) -> OnnxRuntimeDetails:
        import onnxruntime

        providers = tuple(self._session.get_providers())
        device = "cuda" if providers[0] == _CUDA else "cpu"
        kind = EmulatedDetails if self._emulated else OnnxRuntimeDetails
        return kind("ONNX Runtime", onnxruntime.__version__, device, providers, self._threads)


def _loaded(model: Path | onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    return onnx.load(model) if isinstance(model, Path) else model


def _providers(cuda: bool, cpu_fallback: bool) -> list[Any]:  # The elements are names, and pairs of a name and options.
    """Return the providers of a session. Raises EngineError when CUDA is required and not available."""
    if not cuda:
        return [_CPU]
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        if cpu_fallback:
            return [_CPU]
        raise EngineError(
            "This ONNX Runtime was built without CUDA: pip install onnxruntime-gpu, or use --cpu-fallback."
        )
    if hasattr(onnxruntime, "preload_dlls"):
        import torch  # noqa: F401 - PyTorch loads the CUDA libraries that the provider needs

        # The log on stderr is disabled, because the error of a provider that does not start contains its text.
        onnxruntime.set_default_logger_severity(4)
        # This function prints what is missing on stdout, where --json allows only one object.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    return [(_CUDA, _CUDA_OPTIONS), *([_CPU] if cpu_fallback else [])]


def _why_not_cuda() -> str:
    """Return the loader's message about the provider's library, which says what is missing."""
    import onnxruntime

    if find_gpu() is None:
        return why_no_gpu()
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for library in folder.glob("*onnxruntime_providers_cuda.*"):
            ctypes.CDLL(str(library))
    except OSError as error:
        return f"{error} (pip install 'onnxruntime-gpu[cuda,cudnn]')"
    return "its libraries load, but it finds no device that it can use; -v shows what it says"


def _probe(_: Gpu | None) -> Availability:
    import onnxruntime

    return works(f"ONNX Runtime {onnxruntime.__version__}, on the CPU")


def _probe_cuda(gpu: Gpu | None) -> Availability:
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return unavailable("this ONNX Runtime was built without CUDA (pip install onnxruntime-gpu)")
    if gpu is None:
        return unavailable(why_no_gpu())
    return works(f"ONNX Runtime {onnxruntime.__version__}, on {gpu.name}")


def _load(bundle: Bundle, options: RunOptions, shown: Shown, *, cuda: bool = False) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(
        bundle.onnx_path,
        extra=phi_names(bundle.recipe.layers) if shown.phi else (),
        inner=shown.inner,
        threads=options.threads,
        cuda=cuda,
        cpu_fallback=options.cpu_fallback,
        bfloat16=Format(bundle.manifest.precision) is Format.BF16,
    )


def _load_onnx(bundle: Bundle, path: Path, options: RunOptions, *, cuda: bool = False) -> OnnxRuntimeEngine:
    bfloat16 = Format(bundle.manifest.precision) is Format.BF16
    return OnnxRuntimeEngine(
        path, threads=options.threads, cuda=cuda, cpu_fallback=options.cpu_fallback, bfloat16=bfloat16
    )


# This code has the engine's settings, and does not import PyTorch, which only the proof needs.
_STANDALONE = """
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.enable_mem_pattern = False
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
run = lambda images: session.run(None, {"image": images})
"""

CPU_SPEC = EngineSpec(
    name="onnxruntime",
    summary="ONNX Runtime on the CPU, which runs the ONNX file",
    preference=40,
    needs_gpu=False,
    package="onnxruntime",
    probe=_probe,
    load=_load,
    load_onnx=_load_onnx,
    standalone=_STANDALONE,
)
CUDA_SPEC = EngineSpec(
    name="onnxruntime-cuda",
    summary="ONNX Runtime on a GPU, which runs the ONNX file",
    preference=30,
    needs_gpu=True,
    package="onnxruntime",
    probe=_probe_cuda,
    load=partial(_load, cuda=True),
    load_onnx=partial(_load_onnx, cuda=True),
    falls_back_to_cpu=True,
)
SPECS = (CPU_SPEC, CUDA_SPEC)
