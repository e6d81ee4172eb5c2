"""Run an ONNX model or a TensorRT plan in the Python backend of Triton Inference Server.

This file is self-contained: it needs the server's module, NumPy, and ONNX Runtime or TensorRT with cuda-bindings. The
file `serving.json` beside it names the model, and holds the size and the hash of each file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar  # the server's module has no types

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The model: image (N, 3, S, S) float32 -> logits, and the model's other outputs.

    A bad request gets an error, and the other requests of its batch get their answers.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Check the files against their hashes and load the engine."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        facts = json.loads((folder / "serving.json").read_text())
        for name, entry in facts["files"].items():
            check_file(folder / name, entry)
        self.limit = max(1, int(config["max_batch_size"]))
        self.shape = tuple(int(n) for n in config["input"][0]["dims"])
        self.outputs = {o["name"]: tuple(int(n) for n in o["dims"]) for o in config["output"]}
        gpu = args["model_instance_kind"] == "GPU"
        device = int(args["model_instance_device_id"]) if gpu else None
        self.engine: Any = engine_named(facts["engine"])(folder / facts["model"], facts, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response for each request, in order."""
        responses: list[Any] = [None] * len(requests)
        good: list[tuple[int, Any]] = []
        for i, request in enumerate(requests):
            try:
                good.append((i, self.checked(request)))
            except ValueError as error:
                responses[i] = refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        for group in groups(good, self.limit):
            self.answer(group, requests, responses)
        return responses

    def checked(self, request: Any) -> Any:
        """Return the request's images. Raises ValueError, which says what is wrong with them."""
        tensor = pb_utils.get_input_tensor_by_name(request, "image")
        if tensor is None:
            raise ValueError("the input 'image' is missing")
        images = tensor.as_numpy()
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"expected images as float32 of shape (N, {wanted}), found {images.dtype} {images.shape}")
        if not 1 <= len(images) <= self.limit:
            raise ValueError(f"expected 1 to {self.limit} images, found {len(images)}")
        if not np.isfinite(images).all():
            raise ValueError("the image holds NaN or infinity")
        return images

    def answer(self, group: list[tuple[int, Any]], requests: list[Any], responses: list[Any]) -> None:
        """Run requests together and, if that fails, one by one, so that only a bad request fails."""
        try:
            found = self.run(np.concatenate([images for _, images in group]))
        except Exception as error:
            if len(group) > 1:
                for one in group:
                    self.answer([one], requests, responses)
                return
            pb_utils.Logger.log_error(f"the engine failed: {error}")
            responses[group[0][0]] = refusal("the engine failed on this request", pb_utils.TritonError.INTERNAL)
            return
        start = 0
        for i, images in group:
            stop = start + len(images)
            asked = requests[i].requested_output_names()
            tensors = [pb_utils.Tensor(name, found[name][start:stop]) for name in found if name in asked]
            responses[i] = pb_utils.InferenceResponse(output_tensors=tensors)
            start = stop

    def run(self, images: Any) -> dict[str, Any]:
        """Run the engine and check its outputs, because the server does not check them."""
        found = self.engine(np.ascontiguousarray(images))
        checked = {}
        for name, shape in self.outputs.items():
            value = np.ascontiguousarray(found[name], dtype=np.float32)
            if value.shape != (len(images), *shape):
                raise RuntimeError(f"'{name}' has shape {value.shape}, expected {(len(images), *shape)}")
            if not np.isfinite(value).all():
                raise RuntimeError(f"'{name}' holds NaN or infinity")
            checked[name] = value
        return checked

    def finalize(self) -> None:
        """Release the engine."""
        self.engine = None


def check_file(path: Path, entry: dict[str, Any]) -> None:
    """Raise RuntimeError unless the file has the size and the hash that it had when it was written."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if path.stat().st_size != entry["size"] or digest.hexdigest() != entry["sha256"]:
        raise RuntimeError(f"{path.name} is not the file that was exported: write the repository again")


def groups(requests: list[tuple[int, Any]], limit: int) -> list[list[tuple[int, Any]]]:
    """Split requests into groups of at most `limit` images, in order."""
    found: list[list[tuple[int, Any]]] = []
    size = limit
    for request in requests:
        if size + len(request[1]) > limit:
            found.append([])
            size = 0
        found[-1].append(request)
        size += len(request[1])
    return found


def refusal(message: str, code: Any) -> Any:
    """Return a response that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class OnnxRuntime:
    """An ONNX model that runs on the CPU, or with CUDA on a GPU."""

    def __init__(self, path: Path, facts: dict[str, Any], device: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(facts["threads"])
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        # TF32 is off, because it keeps only 10 of the 23 bits of a float32's fraction.
        cuda = ("CUDAExecutionProvider", {"device_id": device, "use_tf32": 0})
        providers = ["CPUExecutionProvider"] if device is None else [cuda]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        if device is not None and "CUDAExecutionProvider" not in self.session.get_providers():
            raise RuntimeError(
                "ONNX Runtime's CUDA provider does not start: install onnxruntime-gpu, or use --device cpu"
            )
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: Any) -> dict[str, Any]:
        return dict(zip(self.names, self.session.run(self.names, {"image": images}), strict=True))


class TensorRT:
    """A plan of TensorRT or of TensorRT for RTX that runs on one GPU."""

    # Each flavour of TensorRT has a Python module of its own.
    MODULES: ClassVar[dict[str, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

    def __init__(self, path: Path, facts: dict[str, Any], device: int | None) -> None:
        import importlib

        from cuda.bindings import runtime

        if device is None:
            raise RuntimeError("a TensorRT plan needs instances of kind GPU")
        trt = importlib.import_module(self.MODULES[facts["engine"]])
        if trt.__version__ != facts["version"]:
            raise RuntimeError(f"the plan was built with TensorRT {facts['version']}, found {trt.__version__}")
        self.cuda = runtime
        self.call("cudaSetDevice", device)
        self.logger = trt.Logger(trt.Logger.ERROR)
        # Only the logger and the runtime that made it keep an engine alive.
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise RuntimeError("TensorRT cannot load the plan on this GPU")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise RuntimeError("TensorRT has too little GPU memory for this plan")
        self.stream = self.call("cudaStreamCreate")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.largest = self.engine.get_tensor_profile_shape("image", 0)[2][0]
        self.outputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        self.dtypes = {n: np.dtype(trt.nptype(self.engine.get_tensor_dtype(n))) for n in names}
        self.buffers = {n: self.call("cudaMalloc", self.bytes_of(n)) for n in names}
        for name, address in self.buffers.items():
            self.context.set_tensor_address(name, address)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime. Raises RuntimeError when it fails."""
        status, *values = getattr(self.cuda, function)(*arguments)
        if int(status) != 0:
            raise RuntimeError(f"{function}: {status.name}")
        return values[0] if values else None

    def bytes_of(self, name: str) -> int:
        """Return the bytes of one tensor at the largest batch."""
        shape = [self.largest, *tuple(self.engine.get_tensor_shape(name))[1:]]
        return int(np.prod(shape)) * int(self.dtypes[name].itemsize)

    def __call__(self, images: Any) -> dict[str, Any]:
        kinds = self.cuda.cudaMemcpyKind
        if not self.context.set_input_shape("image", images.shape):
            raise RuntimeError(f"the plan does not accept a batch of {len(images)}")
        arguments = (self.buffers["image"], images.ctypes.data, images.nbytes)
        self.call("cudaMemcpyAsync", *arguments, kinds.cudaMemcpyHostToDevice, self.stream)
        if not self.context.execute_async_v3(int(self.stream)):
            raise RuntimeError("TensorRT could not run the batch")
        found = {}
        for name in self.outputs:
            value = np.empty(tuple(self.context.get_tensor_shape(name)), self.dtypes[name])
            arguments = (value.ctypes.data, self.buffers[name], value.nbytes)
            self.call("cudaMemcpyAsync", *arguments, kinds.cudaMemcpyDeviceToHost, self.stream)
            found[name] = value
        self.call("cudaStreamSynchronize", self.stream)
        return found


def engine_named(name: str) -> Any:
    """Return the class that runs an engine of that name. Raises RuntimeError if there is none."""
    engines: dict[str, Any] = {"onnxruntime": OnnxRuntime, **dict.fromkeys(TensorRT.MODULES, TensorRT)}
    if name not in engines:
        raise RuntimeError(f"unknown engine '{name}', expected one of {', '.join(engines)}")
    return engines[name]
