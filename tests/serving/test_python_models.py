"""The files that run on the server are tested with a stand-in for the server's module, for cases no request causes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.serving.triton.layout import PostprocessFacts
from dec_export.serving.triton.options import ServingOptions
from dec_export.serving.triton.repository import write_repository
from dec_export.tasks import TASKS, Task
from dec_export.tasks.base import Kind

FOLDER = Path(__file__).parents[2] / "dec_export" / "serving" / "triton" / "python_models"


class Tensor:
    def __init__(self, name: str, value: NDArray[Any]) -> None:
        self.name, self.value = name, value

    def as_numpy(self) -> NDArray[Any]:
        return self.value


class TritonError:
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.value for tensor in output_tensors or []}
        self.error = error


class Request(dict[str, Tensor]):
    """A request for these inputs, that asks for these outputs."""

    asked: tuple[str, ...] = ("logits",)

    def requested_output_names(self) -> list[str]:
        return list(self.asked)


def load(name: str) -> ModuleType:
    """One of the files, with the server's module replaced."""
    server: Any = ModuleType("triton_python_backend_utils")
    server.Tensor, server.InferenceResponse, server.TritonError = Tensor, Response, TritonError
    server.Logger = SimpleNamespace(log_error=lambda _: None)
    server.get_input_tensor_by_name = lambda request, wanted: request.get(wanted)
    spec = importlib.util.spec_from_file_location(f"served_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("triton_python_backend_utils")
    sys.modules["triton_python_backend_utils"] = server
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["triton_python_backend_utils"]
        else:
            sys.modules["triton_python_backend_utils"] = before
    return module


ENGINE, PRE, POST = (load(name) for name in ("engine_model", "preprocess_model", "postprocess_model"))


def served(engine: Callable[[NDArray[np.float32]], dict[str, Any]], limit: int = 4) -> Any:
    """The model around an engine: images (N, 3, 2, 2) -> logits (N, 2)."""
    model = ENGINE.TritonPythonModel()
    model.limit, model.shape, model.outputs, model.engine = limit, (3, 2, 2), {"logits": (2,)}, engine
    return model


def image(value: float, count: int = 1) -> Request:
    return Request(image=Tensor("image", np.full((count, 3, 2, 2), value, np.float32)))


def test_an_answer_holds_what_the_request_asks_for() -> None:
    model = served(lambda images: {"logits": images[:, :2, 0, 0], "feature_map_1": images})
    model.outputs = {"logits": (2,), "feature_map_1": (3, 2, 2)}
    requests = [image(1), image(2), image(3, count=2)]
    requests[1].asked = ("feature_map_1",)
    requests[2].asked = ("logits", "feature_map_1")
    answers = model.execute(requests)
    assert [list(answer.outputs) for answer in answers] == [["logits"], ["feature_map_1"], ["logits", "feature_map_1"]]
    assert [float(next(iter(answer.outputs.values())).max()) for answer in answers] == [1, 2, 3]


def sums(images: NDArray[np.float32]) -> dict[str, Any]:
    total = images.sum(axis=(1, 2, 3))
    return {"logits": np.stack([total, -total], axis=1)}


def test_answers_go_to_the_requests_that_asked() -> None:
    requests = [image(1), image(2, 3), image(3, 2), image(4)]
    responses = served(sums).execute(requests)
    for request, response in zip(requests, responses, strict=True):
        assert np.array_equal(response.outputs["logits"], sums(request["image"].value)["logits"])


def test_an_engine_that_fails_on_one_request_answers_the_others() -> None:
    calls = []

    def fragile(images: NDArray[np.float32]) -> dict[str, Any]:
        calls.append(len(images))
        if (images == 2).any():
            raise RuntimeError("/secret/path exploded")
        return sums(images)

    responses = served(fragile).execute([image(1), image(2), image(3)])
    assert [response.error is None for response in responses] == [True, False, True]
    assert responses[1].error.code == TritonError.INTERNAL
    assert "secret" not in responses[1].error.message
    assert calls == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "engine",
    [
        lambda images: {"logits": np.zeros((len(images), 3), np.float32)},
        lambda images: {"logits": np.zeros((len(images) + 1, 2), np.float32)},
        lambda images: {"logits": np.full((len(images), 2), np.nan, np.float32)},
        lambda images: {"other": np.zeros((len(images), 2), np.float32)},
    ],
    ids=["shape", "batch", "nan", "name"],
)
def test_nothing_wrong_goes_out(engine: Any) -> None:
    (response,) = served(engine).execute([image(1)])
    assert response.error.code == TritonError.INTERNAL


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "the input 'image' is missing"),
        (image(1, 5), "expected 1 to 4 images, found 5"),
        (image(1, 0), "expected 1 to 4 images, found 0"),
        ({"image": Tensor("image", np.zeros((1, 3, 2, 3), np.float32))}, r"of shape \(N, 3, 2, 2\)"),
        ({"image": Tensor("image", np.zeros((1, 3, 2, 2)))}, "found float64"),
        (image(np.inf), "NaN or infinity"),
    ],
)
def test_a_bad_request_is_refused_beside_a_good_one(request_: Any, sentence: str) -> None:
    bad, good = served(sums).execute([request_, image(1)])
    assert bad.error.code == TritonError.INVALID_ARG
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(bad.error.message)
    assert good.error is None


@given(st.lists(st.integers(1, 4), max_size=20))
def test_groups_keep_the_order_and_the_limit(sizes: list[int]) -> None:
    requests = [(i, np.zeros(size)) for i, size in enumerate(sizes)]
    groups = ENGINE.groups(requests, 4)
    assert [request for group in groups for request in group] == requests
    assert all(0 < sum(len(images) for _, images in group) <= 4 for group in groups)
    # No two neighbours would fit into one.
    lengths = [sum(len(images) for _, images in group) for group in groups]
    firsts = [len(group[0][1]) for group in groups]
    assert all(length + first > 4 for length, first in zip(lengths, firsts[1:], strict=False))


def test_the_model_loads_what_the_repository_holds(digits_bundle: Bundle, tmp_path: Path) -> None:
    write_repository(digits_bundle, tmp_path / "repo", ServingOptions(device="cpu"))
    folder = tmp_path / "repo" / "digits"
    config = {
        "max_batch_size": 8,
        "input": [{"name": "image", "dims": ["3", "64", "64"]}],
        "output": [{"name": "logits", "dims": ["10"]}],
    }
    arguments = {
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }
    model = ENGINE.TritonPythonModel()
    model.initialize(arguments)
    (response,) = model.execute([Request(image=Tensor("image", np.zeros((2, 3, 64, 64), np.float32)))])
    assert response.outputs["logits"].shape == (2, 10)
    (folder / "1" / "model.onnx").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="is not the file that was exported"):
        ENGINE.TritonPythonModel().initialize(arguments)


def test_whatever_breaks_in_preprocessing_breaks_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PRE.TritonPythonModel()

    def prepare(encoded: bytes) -> NDArray[np.float32]:
        if encoded == b"huge":
            raise MemoryError
        if encoded == b"odd":
            raise AssertionError("an assertion of a decoder")
        return np.zeros((3, 2, 2), np.float32)

    monkeypatch.setattr(model, "prepare", prepare)
    requests = [
        {"encoded": Tensor("encoded", np.array([[b]], dtype=object))} for b in (b"fine", b"huge", b"odd", b"fine")
    ]
    responses = model.execute(requests)
    assert [response.error is None for response in responses] == [True, False, False, True]
    assert {response.error.code for response in responses[1:3]} == {TritonError.INTERNAL}


def test_whatever_breaks_in_postprocessing_breaks_one_request() -> None:
    model = POST.TritonPythonModel()
    model.answer_of, model.top, model.labels = model.best_of, 2, np.array(["a", "b", "c"], dtype=object)
    good = {"logits": Tensor("logits", np.array([[0.0, 2.0, 1.0]], np.float32))}
    more = {"logits": Tensor("logits", np.array([[0.0, 2.0, 1.0, 9.0]], np.float32))}
    first, broken, nan = model.execute([good, more, {"logits": Tensor("logits", np.full((1, 3), np.nan))}])
    assert first.outputs["classes"].tolist() == [[1, 2]]
    assert first.outputs["labels"].tolist() == [[b"b", b"c"]]
    assert first.outputs["scores"][0].sum() < 1
    assert broken.error.code == TritonError.INTERNAL
    assert nan.error.code == TritonError.INVALID_ARG


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_postprocessing_answers_for_every_task(task: Task, tmp_path: Path) -> None:
    model = postprocessing_of(task.name, tmp_path)
    shape = (2, *task.logits_shape(classes=3, image_size=4))
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (response,) = model.execute([{"logits": Tensor("logits", logits)}])
    for answer in task.answers(top_k=2, image_size=4):
        assert response.outputs[answer.name].shape == (2, *answer.shape)
        assert response.outputs[answer.name].dtype == (object if answer.kind is Kind.TEXT else answer.kind.value)
    for i in range(2):
        assert task.is_right({name: value[i : i + 1] for name, value in response.outputs.items()}, logits[i], 1e-6)


def test_postprocessing_refuses_a_task_that_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unknown task 'detection', expected one of classification, segmentation"):
        postprocessing_of("detection", tmp_path)


def test_an_engine_that_the_server_does_not_know_is_refused() -> None:
    with pytest.raises(RuntimeError, match="unknown engine 'openvino', expected one of onnxruntime, tensorrt, "):
        ENGINE.engine_named("openvino")
    assert ENGINE.engine_named("tensorrt-rtx") is ENGINE.TensorRT


def postprocessing_of(task: str, folder: Path) -> Any:
    """The model that answers for a task with three classes, of which the two best are told."""
    (folder / "1").mkdir()
    facts = PostprocessFacts(task=task, labels=("a", "b", "c"), top_k=2)
    (folder / "1" / "serving.json").write_bytes(facts.to_json())
    model = POST.TritonPythonModel()
    model.initialize({"model_repository": str(folder), "model_version": "1"})
    return model


def test_equal_logits_keep_the_order_of_their_classes() -> None:
    model = POST.TritonPythonModel()
    model.top, model.labels = 3, np.array(["a", "b", "c"], dtype=object)
    classes, _, scores = model.best_of(np.array([[1.0, 1.0, 1.0]], np.float32))
    assert classes.value.tolist() == [[0, 1, 2]]
    assert scores.value[0] == pytest.approx(1 / 3)
