"""The server that the tests start is a real one: it answers, refuses, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.serving import server as harness
from tests.serving.server import SWITCH, TritonServer, needs_server, server_home, why_no_server

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py"}
CONFIG = """
name: "{name}"
backend: "{backend}"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: [ {size} ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }}
instance_group {{ kind: KIND_CPU count: 1 }}
dynamic_batching {{ max_queue_delay_microseconds: 200000 }}
"""
LENGTHS_CONFIG = """
name: "lengths"
backend: "python"
max_batch_size: 8
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "length" data_type: TYPE_INT64 dims: [ 1 ] }
instance_group { kind: KIND_CPU count: 1 }
"""
PYTHON_MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        import onnxruntime
        path = os.path.join(args["model_repository"], args["model_version"], "weights.onnx")
        self._session = onnxruntime.InferenceSession(path)

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", self._session.run(["y"], {"x": x})[0])]))
        return answers
"""
LENGTHS_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            lengths = np.array([[len(text) for text in row] for row in texts], np.int64)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("length", lengths)]))
        return answers
"""


def linear() -> bytes:
    """y = ReLU(x W), with weights that round."""
    weights = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Relu", ["xw"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 3), ("y", 4)))
    graph = helper.make_graph(nodes, "linear", [x], [y], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


MODEL = linear()


def expected(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


def add(repository: Path, name: str, backend: str, content: bytes = MODEL, size: int = 3) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, backend=backend, size=size))
    if backend == "python":
        (version / "weights.onnx").write_bytes(content)
        content = PYTHON_MODEL.encode()
    (version / FILES[backend]).write_bytes(content)


def ask(server: TritonServer, protocol: str, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    module = CLIENTS[protocol]
    with module.InferenceServerClient(getattr(server, f"{protocol}_url")) as connection:
        tensor = module.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        return connection.infer(name, [tensor]).as_numpy("y")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("server")
    for backend in FILES:
        add(folder / "repository", backend, backend)
    lengths = folder / "repository" / "lengths"
    (lengths / "1").mkdir(parents=True)
    (lengths / "1" / "model.py").write_text(LENGTHS_MODEL)
    (lengths / "config.pbtxt").write_text(LENGTHS_CONFIG)
    with TritonServer(folder / "repository", folder / "work", stand_ins=True) as running:
        yield running


@needs_server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("backend", FILES)
def test_answers_equal_those_of_onnx_runtime_to_the_bit(server: TritonServer, backend: str, protocol: str) -> None:
    x = np.random.default_rng(5).standard_normal((5, 3)).astype(np.float32)
    answer = ask(server, protocol, backend, x)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, expected(x))


@needs_server
def test_a_batch_of_requests_is_taken_apart_again(server: TritonServer) -> None:
    inputs = [np.random.default_rng(n).standard_normal((1 + n % 3, 3)).astype(np.float32) for n in range(8)]
    runs = 'nv_inference_exec_count{model="onnxruntime",version="1"}'
    before = server.metrics()[runs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        answers = list(pool.map(lambda x: ask(server, "grpc", "onnxruntime", x), inputs))
    assert server.metrics()[runs] - before < len(inputs)
    for x, answer in zip(inputs, answers, strict=True):
        # A product of another number of rows may be summed in another order.
        np.testing.assert_allclose(answer, expected(x), rtol=1e-5, atol=1e-6)


@needs_server
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bytes_reach_a_model(server: TritonServer, protocol: str) -> None:
    """Encoded images come as bytes, which break the server's Python backend where it meets NumPy 2."""
    module = CLIENTS[protocol]
    with module.InferenceServerClient(getattr(server, f"{protocol}_url")) as connection:
        tensor = module.InferInput("text", [2, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"\x00\xff\xd8"], [b""]], np.object_))
        lengths = connection.infer("lengths", [tensor]).as_numpy("length")
    assert lengths.tolist() == [[3], [0]]


@needs_server
def test_stopping_leaves_no_process_and_no_shared_memory(tmp_path: Path) -> None:
    add(tmp_path / "repository", "python", "python")
    add(tmp_path / "repository", "plan", "tensorrt")
    server = TritonServer(tmp_path / "repository", tmp_path / "work", stand_ins=True)
    server.start()
    x = np.ones((1, 3), np.float32)
    for name in ("python", "plan"):
        ask(server, "http", name, x)
    processes, regions = server.processes(), server.regions()
    assert str(server.pid) in processes
    assert len(processes) == 3, "the server and two stubs"
    assert regions
    server.stop()
    assert server.returncode == 0, server.log_tail()
    assert server.leftovers() == []
    assert not any(Path("/proc", pid).exists() for pid in processes)
    assert not any(Path(region).exists() for region in regions)


@needs_server
def test_what_a_killed_server_leaves_is_told_and_cleared_away(tmp_path: Path) -> None:
    add(tmp_path / "repository", "python", "python")
    with TritonServer(tmp_path / "repository", tmp_path / "work") as server:
        regions = server.regions()
        os.kill(server.pid, signal.SIGKILL)
    assert server.returncode == -signal.SIGKILL
    assert set(regions) <= set(server.leftovers())
    assert server.processes() == server.regions() == []


@needs_server
@pytest.mark.parametrize(
    ("content", "size", "reason"),
    [
        (b"not a model", 3, r"bad.*INVALID_PROTOBUF"),
        (MODEL, 5, r"'x' has the shape \[-1, 3\] in the model, \[-1, 5\] in the configuration"),
    ],
    ids=["corrupt", "another shape"],
)
def test_a_model_that_cannot_be_loaded_stops_the_server_with_its_reason(
    content: bytes, size: int, reason: str, tmp_path: Path
) -> None:
    add(tmp_path / "repository", "bad", "onnxruntime", content, size)
    server = TritonServer(tmp_path / "repository", tmp_path / "work", stand_ins=True)
    with pytest.raises(RuntimeError, match=reason):
        server.start()
    assert server.leftovers() == []


@needs_server
def test_a_server_may_go_on_without_a_model_and_load_others_later(tmp_path: Path) -> None:
    add(tmp_path / "repository", "bad", "onnxruntime", b"not a model")
    add(tmp_path / "repository", "good", "onnxruntime")
    add(tmp_path / "repository", "later", "onnxruntime")
    x = np.ones((1, 3), np.float32)
    with TritonServer(
        tmp_path / "repository",
        tmp_path / "work",
        stand_ins=True,
        exit_on_error=False,
        model_control="explicit",
        arguments=["--load-model=good", "--load-model=bad"],
    ) as server:
        np.testing.assert_array_equal(ask(server, "http", "good", x), expected(x))
        with tritonclient.http.InferenceServerClient(server.http_url) as connection:
            assert connection.is_server_live()
            assert [connection.is_model_ready(name) for name in ("good", "bad", "later")] == [True, False, False]
            connection.load_model("later")
        np.testing.assert_array_equal(ask(server, "http", "later", x), expected(x))
    assert server.leftovers() == []


def test_the_folder_of_the_server_is_made_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"pip download .* failed"):
        server_home()
    made = []

    def make(home: Path) -> None:
        (home / "venv" / "bin" / "python").mkdir(parents=True)
        made.append(home)

    monkeypatch.setattr(harness, "_make", make)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: server_home(), range(2))
    assert first == second
    assert len(made) == 1
    assert sorted(path.suffix == ".lock" for path in first.parent.iterdir()) == [False, True]


def test_only_the_platform_or_a_person_turns_the_server_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    assert why_no_server() == f"{SWITCH} is set"
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(harness.platform, "machine", lambda: "aarch64")
    assert why_no_server() == "the server's wheel is for 64-bit x86 Linux"
