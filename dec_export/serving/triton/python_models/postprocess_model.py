"""Turn logits into answers in the Python backend of Triton Inference Server. This file needs only NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any  # the server's module has no types

import numpy as np
import triton_python_backend_utils as pb_utils


def refusal(message: str, code: Any) -> Any:
    """Return a response that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class TritonPythonModel:
    """The postprocessing of both tasks.

    Classification: logits (N, classes) -> the k best classes, their labels and probabilities, best first.
    Segmentation: logits (N, classes, H, W) -> class_map (N, H, W) uint8, the best class of every pixel.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the task and the labels."""
        folder = Path(args["model_repository"])
        facts = json.loads((folder / args["model_version"] / "serving.json").read_text())
        answers = {"classification": self.best_of, "segmentation": self.map_of}
        if facts["task"] not in answers:
            raise RuntimeError(f"unknown task '{facts['task']}', expected one of {', '.join(answers)}")
        self.answer_of = answers[facts["task"]]
        self.top = int(facts["top_k"])
        self.labels = np.array(facts["labels"], dtype=object)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response for each request, in order."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """Return the answer to one request, or an error, which does not affect other requests."""
        try:
            logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
            if not np.isfinite(logits).all():
                return refusal("the logits hold NaN or infinity", pb_utils.TritonError.INVALID_ARG)
            answer = self.answer_of(logits)
        except Exception as error:
            pb_utils.Logger.log_error(f"postprocessing failed: {type(error).__name__}: {error}")
            return refusal("the answer could not be made", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=answer)

    def best_of(self, logits: Any) -> list[Any]:
        """Return classes (N, k) int32, labels (N, k) text and scores (N, k) float32, the best first.

        Equal logits stay in the order of the classes.
        """
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        classes = np.argsort(-logits, axis=1, kind="stable")[:, : self.top]
        scores = np.take_along_axis(probabilities, classes, axis=1).astype(np.float32)
        named = np.array([[self.labels[c].encode() for c in row] for row in classes], dtype=object)
        return [
            pb_utils.Tensor("classes", classes.astype(np.int32)),
            pb_utils.Tensor("labels", named),
            pb_utils.Tensor("scores", scores),
        ]

    def map_of(self, logits: Any) -> list[Any]:
        """Return class_map (N, H, W) uint8, which can be written as a PNG with one byte for each pixel."""
        return [pb_utils.Tensor("class_map", logits.argmax(axis=1).astype(np.uint8))]
