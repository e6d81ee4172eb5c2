"""The four models of a repository: preprocessing, engine, postprocessing, and the ensemble of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dec_export.bundle.store import MODEL, Bundle
from dec_export.serving.triton.config import (
    Accelerator,
    Cuda,
    DataType,
    DynamicBatching,
    Ensemble,
    ExecutionAccelerators,
    GraphShape,
    GraphSpec,
    Input,
    InstanceGroup,
    Kind,
    ModelConfig,
    Optimization,
    Output,
    QueuePolicy,
    Step,
    Tensor,
    Warmup,
    WarmupInput,
)

Backend = Literal["tensorrt", "onnxruntime", "python"]
LABELS = "labels.txt"
FACTS = "serving.json"
ENSEMBLES = {"classification": "classify", "segmentation": "segment"}
# Pictures of cameras, and room. A server decodes for strangers, so it allows less than a build does.
MAX_ENCODED_BYTES = 16 << 20
MAX_PIXELS = 40_000_000
# What a label on the wire is taken to have when shared memory is reckoned.
_LABEL_BYTES = 256
_QUEUE_DELAY_MICROSECONDS = 1000
# So many full batches may wait; further requests are refused, rather than answered late.
_WAITING_BATCHES = 32
_ITEM_BYTES = {DataType.TYPE_FP32: 4, DataType.TYPE_INT32: 4, DataType.TYPE_UINT8: 1}

Content = bytes | Path


@dataclass(frozen=True)
class ServedModel:
    """config; files of the version's folder; files beside config.pbtxt. Files are bytes, or another file to copy."""

    config: ModelConfig
    version_files: Mapping[str, Content]
    side_files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(frozen=True)
class Serving:
    """How a bundle is to be served.

    engine: "onnxruntime", or the TensorRT flavour whose plan runs. labels: one for each class. top_k: classes in an
    answer. photograph: a real image, for the warmup.
    """

    name: str
    backend: Backend
    engine: str
    kind: Kind
    instances: int
    max_batch: int
    labels: Sequence[str]
    top_k: int
    photograph: Image.Image


def served_models(bundle: Bundle, serving: Serving) -> list[ServedModel]:
    """The models in the order in which they must be there: what an ensemble is made of, then the ensemble."""
    models = [_engine(bundle, serving), _preprocessing(bundle, serving), _postprocessing(bundle, serving)]
    return [*models, _ensemble(serving, models)]


def shared_memory_of(model: ServedModel) -> int:
    """Bytes that the Python backend may hold in /dev/shm for a model: instances x batch x bytes in and out x 2."""
    config = model.config
    if config.backend != "python":
        return 0
    each = _bytes_of(config.input, MAX_ENCODED_BYTES) + _bytes_of(config.output, _LABEL_BYTES)
    return 2 * config.instance_group[0].count * config.max_batch_size * each


def _bytes_of(tensors: Sequence[Tensor], text: int) -> int:
    """Of one image; an element of text has so many."""
    return sum(prod(tensor.dims) * _ITEM_BYTES.get(tensor.data_type, text) for tensor in tensors)


def _engine(bundle: Bundle, serving: Serving) -> ServedModel:
    image, logits = _image(bundle), _output(bundle, "logits")
    others = [_output(bundle, entry.name) for entry in bundle.manifest.outputs if entry.name != logits.name]
    plan = None if serving.engine == "onnxruntime" else bundle.manifest.plans[serving.engine]  # type: ignore[index]
    source = MODEL if plan is None else plan.file
    tensor = bundle.preprocessing.apply(serving.photograph)[None]
    segments = bundle.recipe.task == "segmentation"
    if serving.backend == "python":
        facts = {
            "engine": serving.engine,
            "model": source,
            "version": None if plan is None else plan.version,
            "threads": 0,
            "files": {source: bundle.manifest.files[source].model_dump()},
        }
        files = {source: bundle.path / source, **_python_model("engine_model.py", facts)}
    else:
        files = {"model.plan" if plan else MODEL: bundle.path / source}
    config = ModelConfig(
        name=serving.name,
        backend=serving.backend,
        max_batch_size=serving.max_batch,
        input=(image,),
        output=(logits if segments else logits.model_copy(update={"label_filename": LABELS}), *others),
        instance_group=(
            InstanceGroup(
                kind=serving.kind, count=serving.instances, profile=("0",) if serving.backend == "tensorrt" else ()
            ),
        ),
        dynamic_batching=_batching(serving),
        optimization=_optimization(image, serving),
        model_warmup=_warmups(image, serving),
    )
    return ServedModel(config, files, {**_labels(serving), f"warmup/{image.name}": tensor.tobytes()})


def _preprocessing(bundle: Bundle, serving: Serving) -> ServedModel:
    encoded = Input(name="encoded", data_type=DataType.TYPE_STRING, dims=(1,))
    image = _image(bundle)
    facts = {
        "preprocessing": {
            **asdict(bundle.preprocessing),
            "max_pixels": MAX_PIXELS,
            "max_bytes": MAX_ENCODED_BYTES,
        }
    }
    config = ModelConfig(
        name=f"{serving.name}_pre",
        backend="python",
        max_batch_size=serving.max_batch,
        input=(encoded,),
        output=(Output(name=image.name, data_type=image.data_type, dims=image.dims),),
        instance_group=(InstanceGroup(kind=Kind.KIND_CPU, count=serving.instances),),
        dynamic_batching=_batching(serving),
        model_warmup=_warmups(encoded, serving),
    )
    warmup = {f"warmup/{encoded.name}": _as_bytes_tensor(_jpeg(serving.photograph))}
    return ServedModel(config, _python_model("preprocess_model.py", facts), warmup)


def _postprocessing(bundle: Bundle, serving: Serving) -> ServedModel:
    logits = _output(bundle, "logits")
    values = Input(name=logits.name, data_type=logits.data_type, dims=logits.dims)
    facts = {"task": bundle.recipe.task, "labels": list(serving.labels), "top_k": serving.top_k}
    config = ModelConfig(
        name=f"{serving.name}_post",
        backend="python",
        max_batch_size=serving.max_batch,
        input=(values,),
        output=_answers(bundle, serving),
        instance_group=(InstanceGroup(kind=Kind.KIND_CPU, count=serving.instances),),
        dynamic_batching=_batching(serving),
        model_warmup=_warmups(values, serving),
    )
    some: NDArray[np.float32] = np.linspace(-1, 1, prod(logits.dims), dtype=np.float32)
    files = _python_model("postprocess_model.py", facts)
    return ServedModel(config, files, {**_labels(serving), f"warmup/{values.name}": some.tobytes()})


def _ensemble(serving: Serving, models: Sequence[ServedModel]) -> ServedModel:
    """Encoded image in, answer out. Its version's folder is empty, but must exist."""
    engine, pre, post = (model.config for model in models)
    steps = (
        Step(model_name=pre.name, input_map={"encoded": "encoded"}, output_map={"image": "prepared_image"}),
        Step(model_name=engine.name, input_map={"image": "prepared_image"}, output_map={"logits": "model_logits"}),
        Step(
            model_name=post.name,
            input_map={"logits": "model_logits"},
            output_map={output.name: output.name for output in post.output},
        ),
    )
    task = "segmentation" if post.output[0].name == "class_map" else "classification"
    config = ModelConfig(
        name=f"{serving.name}_{ENSEMBLES[task]}",
        platform="ensemble",
        max_batch_size=serving.max_batch,
        input=pre.input,
        output=post.output,
        ensemble_scheduling=Ensemble(step=steps, max_inflight_requests=_WAITING_BATCHES * serving.max_batch),
    )
    return ServedModel(config, {".keep": b""})


def _image(bundle: Bundle) -> Input:
    entry = bundle.manifest.inputs[0]
    return Input(name=entry.name, data_type=DataType.TYPE_FP32, dims=tuple(map(int, entry.shape[1:])))


def _output(bundle: Bundle, name: str) -> Output:
    entry = next(output for output in bundle.manifest.outputs if output.name == name)
    return Output(name=entry.name, data_type=DataType.TYPE_FP32, dims=tuple(map(int, entry.shape[1:])))


def _answers(bundle: Bundle, serving: Serving) -> tuple[Output, ...]:
    if bundle.recipe.task == "segmentation":
        size = bundle.recipe.backbone.image_size
        return (Output(name="class_map", data_type=DataType.TYPE_UINT8, dims=(size, size)),)
    kinds = {"classes": DataType.TYPE_INT32, "labels": DataType.TYPE_STRING, "scores": DataType.TYPE_FP32}
    return tuple(Output(name=name, data_type=kind, dims=(serving.top_k,)) for name, kind in kinds.items())


def _batching(serving: Serving) -> DynamicBatching:
    return DynamicBatching(
        max_queue_delay_microseconds=_QUEUE_DELAY_MICROSECONDS,
        default_queue_policy=QueuePolicy(max_queue_size=_WAITING_BATCHES * serving.max_batch),
    )


def _warmups(tensor: Input, serving: Serving) -> tuple[Warmup, ...]:
    """A real image, alone and in a full batch."""
    inputs = {tensor.name: WarmupInput(data_type=tensor.data_type, dims=tensor.dims, input_data_file=tensor.name)}
    sizes = sorted({1, serving.max_batch})
    return tuple(Warmup(name=f"batch_of_{size}", batch_size=size, inputs=inputs) for size in sizes)


def _optimization(image: Input, serving: Serving) -> Optimization | None:
    """CUDA graphs for TensorRT; for ONNX Runtime on a GPU no TF32, which keeps 10 bits of a float32's 23."""
    if serving.backend == "tensorrt":
        return _cuda_graphs(image, serving)
    if serving.backend == "onnxruntime" and serving.kind is Kind.KIND_GPU:
        cuda = Accelerator(name="cuda", parameters={"use_tf32": "0"})
        return Optimization(execution_accelerators=ExecutionAccelerators(gpu_execution_accelerator=(cuda,)))
    return None


def _cuda_graphs(image: Input, serving: Serving) -> Optimization:
    """Recorded for powers of two, and the largest batch."""
    sizes = sorted({*(1 << n for n in range(serving.max_batch.bit_length())), serving.max_batch})
    shape = {image.name: GraphShape(dim=image.dims)}
    return Optimization(
        cuda=Cuda(graphs=True, graph_spec=tuple(GraphSpec(batch_size=size, input=shape) for size in sizes))
    )


def _python_model(source: str, facts: Mapping[str, Any]) -> dict[str, Content]:
    code = (resources.files("dec_export.serving.triton.python_models") / source).read_bytes()
    return {"model.py": code, FACTS: (json.dumps(facts, indent=1) + "\n").encode()}


def _labels(serving: Serving) -> dict[str, bytes]:
    return {LABELS: "".join(f"{label}\n" for label in serving.labels).encode()}


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _as_bytes_tensor(value: bytes) -> bytes:
    """How a warmup file holds one element of a BYTES tensor: its length in four bytes, little-endian, and itself."""
    return len(value).to_bytes(4, "little") + value
