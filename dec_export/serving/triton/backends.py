"""The server's backends that can run an engine: one class for each, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

from dec_export.bundle.store import MODEL, Bundle
from dec_export.engines.tensorrt.plan import PlanEntry
from dec_export.errors import ServingError
from dec_export.serving.triton.config import (
    Accelerator,
    Cuda,
    ExecutionAccelerators,
    GraphShape,
    GraphSpec,
    Input,
    Kind,
    Optimization,
)
from dec_export.serving.triton.layout import Content, EngineFacts, python_model
from dec_export.serving.triton.options import Device

ONNXRUNTIME: Final = "onnxruntime"
# The Python backend of NVIDIA's image lacks these packages.
_PYTHON_PACKAGES = "'numpy<2' pillow"


def plan_of(bundle: Bundle, engine: str) -> PlanEntry | None:
    """Return the bundle's plan for that flavour of TensorRT, or None if it holds none, or for ONNX Runtime."""
    return next((plan for name, plan in bundle.manifest.plans.items() if name == engine), None)


class Backend(ABC):
    """A backend of Triton Inference Server.

    Attributes:
        name: its name in `config.pbtxt` and in `--backend`.
        profiles: the optimisation profiles of a TensorRT plan that an instance uses.
    """

    name: ClassVar[str]
    profiles: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def choose_engine(self, bundle: Bundle, device: Device) -> str:
        """Return the engine that the backend runs: "onnxruntime", or the flavour of TensorRT whose plan it loads.

        Raises:
            ServingError: if the backend cannot run the bundle there.
        """

    @abstractmethod
    def files(self, bundle: Bundle, engine: str) -> dict[str, Content]:
        """Return the files of the version's folder."""

    def optimization(self, image: Input, kind: Kind, max_batch: int) -> Optimization | None:
        """Return the server's optimisation of the model, or None for the server's default."""
        return None

    def packages(self, engine: str, plan: PlanEntry | None, kind: Kind) -> str:
        """Return the packages that pip must install for the Python models of the repository."""
        return _PYTHON_PACKAGES

    def image_note(self, plan: PlanEntry | None) -> str | None:
        """Return a sentence about the server images that fit, or None if all fit."""
        return None


class TensorrtBackend(Backend):
    """The backend that runs the bundle's plan with CUDA graphs."""

    name = "tensorrt"
    profiles = ("0",)

    def choose_engine(self, bundle: Bundle, device: Device) -> str:
        if plan_of(bundle, "tensorrt") is None:
            rtx = plan_of(bundle, "tensorrt-rtx") is not None
            other = "; its plan of TensorRT for RTX runs with --backend python" if rtx else ""
            raise ServingError(
                f"'{bundle.path}' holds no TensorRT plan{other}: build it with --engine tensorrt, "
                "or serve it with --backend onnxruntime."
            )
        if device is not Device.GPU:
            raise ServingError("The tensorrt backend needs a GPU: leave --device cpu out, or choose another --backend.")
        return "tensorrt"

    def files(self, bundle: Bundle, engine: str) -> dict[str, Content]:
        plan = plan_of(bundle, engine)
        if plan is None:
            raise ServingError(f"'{bundle.path}' holds no plan of {engine}: build it with --engine {engine}.")
        return {"model.plan": bundle.path / plan.file}

    def optimization(self, image: Input, kind: Kind, max_batch: int) -> Optimization:
        """Return CUDA graphs for batch sizes that are powers of two, and for the largest batch."""
        sizes = sorted({*(1 << n for n in range(max_batch.bit_length())), max_batch})
        shape = {image.name: GraphShape(dim=image.dims)}
        return Optimization(
            cuda=Cuda(graphs=True, graph_spec=tuple(GraphSpec(batch_size=size, input=shape) for size in sizes))
        )

    def image_note(self, plan: PlanEntry | None) -> str | None:
        if plan is None:
            return None
        return f"Use an image whose `$TRT_VERSION` is {plan.version}: a plan runs only with the version that built it."


class OnnxruntimeBackend(Backend):
    """The backend that runs the bundle's ONNX file."""

    name = "onnxruntime"

    def choose_engine(self, bundle: Bundle, device: Device) -> str:
        _check_format(bundle, device)
        return ONNXRUNTIME

    def files(self, bundle: Bundle, engine: str) -> dict[str, Content]:
        return {MODEL: bundle.path / MODEL}

    def optimization(self, image: Input, kind: Kind, max_batch: int) -> Optimization | None:
        """Disable TF32 on a GPU, because it keeps only 10 of the 23 bits of a float32's fraction."""
        if kind is not Kind.KIND_GPU:
            return None
        cuda = Accelerator(name="cuda", parameters={"use_tf32": "0"})
        return Optimization(execution_accelerators=ExecutionAccelerators(gpu_execution_accelerator=(cuda,)))


class PythonBackend(Backend):
    """The backend that runs `engine_model.py`, with the bundle's plan if it has one and a GPU, else its ONNX file."""

    name = "python"

    def choose_engine(self, bundle: Bundle, device: Device) -> str:
        if device is Device.GPU:
            for flavour in ("tensorrt", "tensorrt-rtx"):
                if plan_of(bundle, flavour) is not None:
                    return flavour
        _check_format(bundle, device)
        return ONNXRUNTIME

    def files(self, bundle: Bundle, engine: str) -> dict[str, Content]:
        plan = plan_of(bundle, engine)
        source = MODEL if plan is None else plan.file
        facts = EngineFacts(
            engine=engine,
            model=source,
            version=None if plan is None else plan.version,
            threads=0,
            files={source: bundle.manifest.files[source]},
        )
        return {source: bundle.path / source, **python_model("engine_model.py", facts)}

    def packages(self, engine: str, plan: PlanEntry | None, kind: Kind) -> str:
        """Return the packages, with the TensorRT that built the plan, because no other version runs it."""
        if plan is not None:
            return f"{_PYTHON_PACKAGES} {engine}=={plan.version} cuda-bindings"
        return f"{_PYTHON_PACKAGES} onnxruntime{'-gpu' if kind is Kind.KIND_GPU else ''}"


def _check_format(bundle: Bundle, device: Device) -> None:
    if bundle.manifest.precision == "bf16" and device is Device.CPU:
        raise ServingError("ONNX Runtime has no bfloat16 on the CPU: serve on a GPU, or build with --precision fp32.")


# These are all backends by name, in the order in which error messages list them.
BACKENDS: Final[Mapping[str, Backend]] = MappingProxyType(
    {
        TensorrtBackend.name: TensorrtBackend(),
        OnnxruntimeBackend.name: OnnxruntimeBackend(),
        PythonBackend.name: PythonBackend(),
    }
)


def backend_named(name: str) -> Backend:
    """Return the backend of that name.

    Raises:
        ServingError: if there is no such backend.
    """
    if name not in BACKENDS:
        raise ServingError(f"Unknown backend '{name}', expected one of {', '.join(BACKENDS)}.")
    return BACKENDS[name]
