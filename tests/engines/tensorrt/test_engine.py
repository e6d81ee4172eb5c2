"""The engine around TensorRT's runner, with a runner that computes on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dec_export.engines.tensorrt import engine as engines
from dec_export.engines.tensorrt.engine import TensorRTEngine
from dec_export.engines.tensorrt.flavours import TENSORRT_RTX
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import EngineError
from tests.helpers.plans import L40, entry, header


class Runner:
    """A runner that writes every result into one array, as Polygraphy's runner does."""

    def __init__(self, _: object) -> None:
        self.buffer = np.zeros((8, 2), np.float32)
        self.active = False

    def activate(self) -> None:
        self.active = True

    def deactivate(self) -> None:
        self.active = False

    def infer(self, feed: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        if np.isnan(feed["image"]).any():
            raise OSError("libcudart.so: cannot open shared object file")
        count = len(feed["image"])
        self.buffer[:count] = feed["image"].mean(axis=(1, 2, 3))[:, None]
        return {"logits": self.buffer[:count]}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> SimpleNamespace:
    """Return a TensorRT whose runtime records its permissions and returns the result that the test chooses."""
    state = SimpleNamespace(engine_host_code_allowed=None, deserialize_cuda_engine=lambda _: object())

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    trt = SimpleNamespace(ILogger=ILogger, Runtime=lambda _: state)
    monkeypatch.setattr(engines, "find_gpu", lambda: L40)
    backend = SimpleNamespace(trt=trt, loaders=SimpleNamespace(TrtRunner=Runner))
    monkeypatch.setattr(engines, "load_backend", lambda _: backend)
    return state


def load(tmp_path: Path, **options: Any) -> TensorRTEngine:
    path = tmp_path / "model.rtx.plan"
    path.write_bytes(header(TENSORRT_RTX))
    return TensorRTEngine(path, TENSORRT_RTX, entry(**options), 4, ["logits"])


def images(count: int) -> NDArray[np.float32]:
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)


def test_results_stay_when_the_runner_runs_again(runtime: SimpleNamespace, tmp_path: Path) -> None:
    engine = load(tmp_path)
    first = engine(images(3))["logits"]
    engine(images(3) + 5)
    assert (first[:, 0] == [0, 1, 2]).all()
    assert not engine.exposes_phi
    assert engine.describe().device == "NVIDIA L40"


@pytest.mark.parametrize("count", [1, 6])
def test_a_batch_outside_the_profile_is_refused(count: int, runtime: SimpleNamespace, tmp_path: Path) -> None:
    engine = load(tmp_path, options=BuildOptions(batch=(2, 3, 5)))
    assert (engine.smallest_batch, engine.largest_batch) == (2, 5)
    with pytest.raises(EngineError, match=f"batches of 2 to 5 images, found {count}"):
        engine(images(count))


def test_code_in_a_plan_is_never_allowed_by_default(runtime: SimpleNamespace, tmp_path: Path) -> None:
    load(tmp_path)
    assert runtime.engine_host_code_allowed is False


def test_a_plan_that_tensorrt_refuses_is_an_engine_error(runtime: SimpleNamespace, tmp_path: Path) -> None:
    runtime.deserialize_cuda_engine = lambda _: None
    with pytest.raises(EngineError, match="TensorRT for RTX cannot load"):
        load(tmp_path)


def test_what_the_cuda_runtime_raises_is_an_engine_error(runtime: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot run a batch of 2: libcudart"):
        load(tmp_path)(images(2) * np.float32(np.nan))
