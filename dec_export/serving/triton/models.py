"""The four models of a repository: preprocessing, engine, postprocessing, and the ensemble of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dec_export.bundle.store import Bundle
from dec_export.names import LOGITS
from dec_export.serving.triton.backends import Backend
from dec_export.serving.triton.config import (
    DataType,
    DynamicBatching,
    Ensemble,
    Input,
    InstanceGroup,
    Kind,
    ModelConfig,
    Output,
    QueuePolicy,
    Step,
    Tensor,
    Warmup,
    WarmupInput,
)
from dec_export.serving.triton.layout import LABELS, Content, PostprocessFacts, PreprocessFacts, python_model
from dec_export.tasks import Task
from dec_export.tasks.base import Kind as AnswerKind

# Images of cameras are smaller. A server decodes images of strangers, so its limit is lower than that of a build.
MAX_ENCODED_BYTES = 16 << 20
MAX_PIXELS = 40_000_000
# The estimate of shared memory counts this many bytes for each label of an answer.
_LABEL_BYTES = 256
_QUEUE_DELAY_MICROSECONDS = 1000
# This many full batches may wait. Further requests are refused, because their answers would be late.
_WAITING_BATCHES = 32
_ITEM_BYTES = {DataType.TYPE_FP32: 4, DataType.TYPE_INT32: 4, DataType.TYPE_UINT8: 1}
_DATA_TYPES = {
    AnswerKind.FLOAT32: DataType.TYPE_FP32,
    AnswerKind.INT32: DataType.TYPE_INT32,
    AnswerKind.UINT8: DataType.TYPE_UINT8,
    AnswerKind.TEXT: DataType.TYPE_STRING,
}


@dataclass(frozen=True)
class ServedModel:
    """A model of the repository.

    Attributes:
        config: the content of `config.pbtxt`.
        version_files: the files of the version's folder, by name.
        side_files: the files beside `config.pbtxt`, by path.
    """

    config: ModelConfig
    version_files: Mapping[str, Content]
    side_files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(frozen=True)
class Serving:
    """The settings with which a bundle is served.

    Attributes:
        task: the task of the model.
        name: the name of the models.
        backend: the server's backend that runs the engine.
        engine: "onnxruntime", or the flavour of TensorRT whose plan runs.
        kind: the kind of device on which the engine runs.
        instances: the number of instances of each model.
        max_batch: the largest batch.
        labels: the name of each class.
        top_k: the number of classes in an answer.
        photograph: an image for the warmup.
    """

    task: Task
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
    """Return the models in the order in which they must be written: the parts of the ensemble, then the ensemble."""
    models = [_engine(bundle, serving), _preprocessing(bundle, serving), _postprocessing(bundle, serving)]
    return [*models, _ensemble(serving, *models)]


def shared_memory_of(model: ServedModel) -> int:
    """Return the bytes that the Python backend may hold in /dev/shm for a model.

    They are instances x batch x (bytes of inputs and outputs) x 2.
    """
    config = model.config
    if config.backend != "python":
        return 0
    each = _bytes_of(config.input, MAX_ENCODED_BYTES) + _bytes_of(config.output, _LABEL_BYTES)
    return 2 * config.instance_group[0].count * config.max_batch_size * each


def _bytes_of(tensors: Sequence[Tensor], text: int) -> int:
    """Return the bytes of all tensors for one image; an element of text counts as `text` bytes."""
    return sum(prod(tensor.dims) * _ITEM_BYTES.get(tensor.data_type, text) for tensor in tensors)


def _engine(bundle: Bundle, serving: Serving) -> ServedModel:
    image, logits = _image(bundle), _output(bundle, LOGITS)
    others = [_output(bundle, entry.name) for entry in bundle.manifest.outputs if entry.name != logits.name]
    tensor = bundle.preprocessing.apply(serving.photograph)[None]
    labels = LABELS if serving.task.has_label_names else None
    config = ModelConfig(
        name=serving.name,
        backend=serving.backend.name,
        max_batch_size=serving.max_batch,
        input=(image,),
        output=(logits.model_copy(update={"label_filename": labels}), *others),
        instance_group=(InstanceGroup(kind=serving.kind, count=serving.instances, profile=serving.backend.profiles),),
        dynamic_batching=_batching(serving),
        optimization=serving.backend.optimization(image, serving.kind, serving.max_batch),
        model_warmup=_warmups(image, serving),
    )
    files = serving.backend.files(bundle, serving.engine)
    return ServedModel(config, files, {**_labels(serving), f"warmup/{image.name}": tensor.tobytes()})


def _preprocessing(bundle: Bundle, serving: Serving) -> ServedModel:
    encoded = Input(name="encoded", data_type=DataType.TYPE_STRING, dims=(1,))
    image = _image(bundle)
    facts = PreprocessFacts.of(bundle.preprocessing, MAX_PIXELS, MAX_ENCODED_BYTES)
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
    return ServedModel(config, python_model("preprocess_model.py", facts), warmup)


def _postprocessing(bundle: Bundle, serving: Serving) -> ServedModel:
    logits = _output(bundle, LOGITS)
    values = Input(name=logits.name, data_type=logits.data_type, dims=logits.dims)
    facts = PostprocessFacts(task=serving.task.name, labels=tuple(serving.labels), top_k=serving.top_k)
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
    files = python_model("postprocess_model.py", facts)
    return ServedModel(config, files, {**_labels(serving), f"warmup/{values.name}": some.tobytes()})


def _ensemble(
    serving: Serving, engine_model: ServedModel, preprocessing: ServedModel, postprocessing: ServedModel
) -> ServedModel:
    """Return the ensemble, which turns an encoded image into an answer. It needs a version's folder, which is empty."""
    engine, pre, post = engine_model.config, preprocessing.config, postprocessing.config
    steps = (
        Step(model_name=pre.name, input_map={"encoded": "encoded"}, output_map={"image": "prepared_image"}),
        Step(model_name=engine.name, input_map={"image": "prepared_image"}, output_map={LOGITS: "model_logits"}),
        Step(
            model_name=post.name,
            input_map={LOGITS: "model_logits"},
            output_map={output.name: output.name for output in post.output},
        ),
    )
    config = ModelConfig(
        name=f"{serving.name}_{serving.task.ensemble}",
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
    answers = serving.task.answers(serving.top_k, bundle.recipe.image_size)
    return tuple(Output(name=each.name, data_type=_DATA_TYPES[each.kind], dims=each.shape) for each in answers)


def _batching(serving: Serving) -> DynamicBatching:
    return DynamicBatching(
        max_queue_delay_microseconds=_QUEUE_DELAY_MICROSECONDS,
        default_queue_policy=QueuePolicy(max_queue_size=_WAITING_BATCHES * serving.max_batch),
    )


def _warmups(tensor: Input, serving: Serving) -> tuple[Warmup, ...]:
    """Return the requests that the server runs before it is ready: an image alone and in a full batch."""
    inputs = {tensor.name: WarmupInput(data_type=tensor.data_type, dims=tensor.dims, input_data_file=tensor.name)}
    sizes = sorted({1, serving.max_batch})
    return tuple(Warmup(name=f"batch_of_{size}", batch_size=size, inputs=inputs) for size in sizes)


def _labels(serving: Serving) -> dict[str, bytes]:
    return {LABELS: "".join(f"{label}\n" for label in serving.labels).encode()}


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _as_bytes_tensor(value: bytes) -> bytes:
    """Encode one element of a BYTES tensor for a warmup file: four little-endian bytes of length, then its bytes."""
    return len(value).to_bytes(4, "little") + value
