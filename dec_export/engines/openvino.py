"""The engine of OpenVINO, which runs on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dec_export.engines.base import EngineDetails, RunOptions, Shown, check_image
from dec_export.engines.spec import Availability, EngineSpec, unavailable, works
from dec_export.errors import EngineError
from dec_export.gpu import Gpu
from dec_export.libraries import has_package, version_of_package
from dec_export.names import is_phi, phi_names

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import openvino
    from numpy.typing import NDArray

    from dec_export.bundle.store import Bundle

# Without these settings, OpenVINO computes in bfloat16 on a processor that supports it.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
_UNTOLD = ("Exception from", "Check '", "To facilitate")
_NARROW = {"f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class OpenVinoDetails(EngineDetails):
    """The details of OpenVINO.

    precision: the precision that the compiled model reports. threads: the number of threads, or None when the runtime
    chooses it.
    """

    precision: str
    threads: int | None


class OpenVinoEngine:
    """An engine that runs an ONNX model on the CPU. It reads the tensors in `extra` from a second compiled model.

    inner: whether `extra` holds all tensors that `dec_export.names` names. OpenVINO does not support an ONNX file's
    functions, so they are inlined first. Raises EngineError when OpenVINO cannot load the model, or when it would
    compute a part of it in another format than the graph says: on a CPU it computes float16 in float32, and bfloat16
    too unless the processor supports it.
    """

    name = "openvino"
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(
        self, model: Path, *, extra: Sequence[str] = (), inner: bool = False, threads: int | None = None
    ) -> None:
        from dec_export.onnx_export.passes.inline import inline
        from dec_export.onnx_export.tracing import inner_names, with_outputs

        self._threads = threads
        proto = _read(model)
        flat = inline(proto) if proto.functions else proto
        self._model = _Compiled(flat, threads)
        self._size = int(flat.graph.input[0].type.tensor_type.shape.dim[-1].dim_value)
        wanted = dict.fromkeys([*extra, *(inner_names(flat) if inner else [])])
        missing = [name for name in wanted if name not in self._model.names]
        self._shown = _Compiled(with_outputs(flat, missing), threads, missing) if missing else None
        self.exposes_phi = any(is_phi(name) for name in [*self._model.names, *missing])

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_image(image, self._size)
        outputs = self._model(image)
        return outputs if self._shown is None else outputs | self._shown(image)

    def describe(self) -> OpenVinoDetails:
        return OpenVinoDetails("OpenVINO", _version(), "cpu", self._model.precision, self._threads)


class _Compiled:
    """A compiled model that any number of threads may call. Each call uses an infer request of its own."""

    def __init__(self, proto: onnx.ModelProto, threads: int | None, names: Sequence[str] | None = None) -> None:
        import openvino

        settings = {**_EXACT, **({} if threads is None else {"INFERENCE_NUM_THREADS": threads})}
        core = openvino.Core()
        try:
            model = core.read_model(proto.SerializeToString())
            _check_formats(model)
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {_version()} cannot load the model: {_reason(error)}") from error
        declared = [output.name for output in proto.graph.output]
        self.names = declared if names is None else list(names)
        self._places = [declared.index(name) for name in self.names]
        self.precision = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        self._idle: list[openvino.InferRequest] = []

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        try:
            # `pop` and `append` of a list are atomic, so a request that was taken belongs to this thread alone.
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer([image])
            # The next call of the request overwrites this memory.
            found = {name: results[place].copy() for name, place in zip(self.names, self._places, strict=True)}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run the model on a batch of {len(image)}: {_reason(error)}") from error
        self._idle.append(request)
        return found


def _read(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path)
    except DecodeError as error:
        raise EngineError(f"OpenVINO {_version()} cannot load the model: '{path}' is no ONNX file.") from error


def _check_formats(model: openvino.Model) -> None:
    """Raise EngineError when a part of the model is in 16 bits, because OpenVINO's CPU device computes in 32 bits."""
    narrow = sorted({_NARROW[found] for found in _formats(model) if found in _NARROW})
    if narrow:
        raise EngineError(
            f"A part of this model computes in {' and '.join(narrow)}, which OpenVINO would compute in another format "
            "on a CPU: build it with --precision fp32 and --solver-precision fp32, or use another engine."
        )


def _formats(model: openvino.Model) -> Iterator[str]:
    """Return OpenVINO's names of the formats of all tensors, including those in the bodies of loops."""
    for operator in model.get_ops():
        yield from (output.get_element_type().get_type_name() for output in operator.outputs())
        if operator.get_type_name() == "Loop":
            yield from _formats(operator.get_function())


def _reason(error: RuntimeError) -> str:
    """Return the reason for an error in one line, without OpenVINO's source lines and links to its documents."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_UNTOLD)]
    return " ".join(said).rstrip(".") or "it gives no reason"


def _version() -> str:
    return version_of_package("openvino") or "unknown"


def _probe(_: Gpu | None) -> Availability:
    if not has_package("openvino"):
        return unavailable("OpenVINO is not installed (pip install 'dec-export[openvino]')")
    import openvino

    openvino.Core()
    return works(f"OpenVINO {_version()}, on the CPU")


def _load(bundle: Bundle, options: RunOptions, shown: Shown) -> OpenVinoEngine:
    extra = phi_names(bundle.recipe.layers) if shown.phi else ()
    return OpenVinoEngine(bundle.onnx_path, extra=extra, inner=shown.inner, threads=options.threads)


def _load_onnx(_: Bundle, path: Path, options: RunOptions) -> OpenVinoEngine:
    return OpenVinoEngine(path, threads=options.threads)


# This code runs the model as the engine does, and does not import PyTorch, which only the proof needs.
_STANDALONE = """
import numpy, onnx, onnx.inliner, openvino
flat = onnx.inliner.inline_local_functions(onnx.load(path))
exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": threads}
core = openvino.Core()
compiled = core.compile_model(core.read_model(flat.SerializeToString()), "CPU", exact)
run = lambda images: compiled([images])
"""

SPECS = (
    EngineSpec(
        name=OpenVinoEngine.name,
        summary="OpenVINO on the CPU, which runs the ONNX file of models in float32",
        preference=45,
        needs_gpu=False,
        package="openvino",
        probe=_probe,
        load=_load,
        load_onnx=_load_onnx,
        # ONNX Runtime, which comes with dec-export, runs every model that OpenVINO runs.
        automatic=False,
        libraries=("openvino",),
        standalone=_STANDALONE,
    ),
)
