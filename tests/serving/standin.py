"""A backend for Triton Inference Server that runs ONNX files with ONNX Runtime on the CPU.

The harness puts it in the place of the backends "onnxruntime" and "tensorrt", which the test server lacks: it serves
`model.onnx`, and a `model.plan` that holds an ONNX file, with the repository's own configuration. Like those backends
it compares the configuration with the model and runs all requests of a batch at once.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(bool)": "TYPE_BOOL",
}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        # The server fills in what the configuration leaves out: model.onnx, model.plan.
        path = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False
        options.intra_op_num_threads = int(_parameter(config, "intra_op_thread_count", "0"))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._batched = config["max_batch_size"] > 0
        self._inputs = [entry["name"] for entry in config["input"]]
        _compare(config["input"], self._session.get_inputs(), self._batched)
        _compare(config["output"], self._session.get_outputs(), self._batched)

    def execute(self, requests: list) -> list:
        groups = [requests] if self._batched else [[request] for request in requests]
        return [response for group in groups for response in self._answer(group)]

    def _answer(self, requests: list) -> list:
        asked = [request.requested_output_names() for request in requests]
        parts = [[_tensor(request, name) for name in self._inputs] for request in requests]
        together = parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]
        names = sorted({name for some in asked for name in some})
        try:
            results = self._session.run(names, dict(zip(self._inputs, together, strict=True)))
        except Exception as error:  # its exception classes are private
            failure = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        ends = np.cumsum([len(part[0]) for part in parts])[:-1]
        pieces = [results] if len(parts) == 1 else zip(*(np.split(each, ends) for each in results), strict=True)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(n, a) for n, a in zip(names, some, strict=True) if n in wanted])
            for some, wanted in zip(pieces, asked, strict=True)
        ]


def _tensor(request: object, name: str) -> np.ndarray:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _parameter(config: dict, name: str, default: str) -> str:
    return config.get("parameters", {}).get(name, {}).get("string_value", default)


def _compare(entries: list, arguments: list, batched: bool) -> None:
    """The configuration must name what the model has; it may fix a dimension that is free there."""
    found = {argument.name: argument for argument in arguments}
    for entry in entries:
        name = entry["name"]
        if name not in found:
            raise ValueError(f"the model has no tensor {name!r}; it has {sorted(found)}")
        if _TYPES.get(found[name].type) != entry["data_type"]:
            raise ValueError(f"{name!r} is {found[name].type} in the model, {entry['data_type']} in the configuration")
        shape = [size if isinstance(size, int) else -1 for size in found[name].shape]
        dims = [-1] * batched + [int(size) for size in entry["dims"]]
        if len(shape) != len(dims) or any(a not in (-1, b) for a, b in zip(shape, dims, strict=True)):
            raise ValueError(f"{name!r} has the shape {shape} in the model, {dims} in the configuration")
