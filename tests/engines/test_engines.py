"""Engines are called like functions, and refuse wrong inputs with clear errors."""

from __future__ import annotations

import numpy as np
import pytest

import dec_export
from dec_export.bundle.store import Bundle
from dec_export.engines import RunOptions
from dec_export.engines.registry import engine_specs
from dec_export.errors import EngineError
from tests.conftest import photographs, without_gpu

CPU_ENGINES = [spec.name for spec in engine_specs() if not spec.needs_gpu]


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_engines_are_functions_of_images(name: str, small_bundle: Bundle) -> None:
    engine = dec_export.engines.load(small_bundle, name)
    outputs = engine(photographs(160, 3))
    assert set(outputs) == {"logits"}
    assert outputs["logits"].shape == (3, 10)
    assert outputs["logits"].dtype == np.float32
    assert {"runtime", "version", "device"} <= set(engine.describe().as_dict())


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_phis_come_on_request(name: str, small_bundle: Bundle) -> None:
    outputs = dec_export.engines.load(small_bundle, name, expose_phi=True)(photographs(160, 2))
    shapes = {key: value.shape for key, value in outputs.items() if key != "logits"}
    assert shapes == {"phi_x_0": (2, 6, 5), "phi_y_0": (2, 6, 5), "phi_x_1": (2, 4, 3), "phi_y_1": (2, 4, 3)}


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 3, 160, 161), np.float32),
        np.zeros((3, 160, 160), np.float32),
        np.zeros((1, 1, 160, 160), np.float32),
        np.zeros((0, 3, 160, 160), np.float32),
        np.zeros((1, 3, 160, 160), np.float64),
        np.zeros((1, 3, 160, 160), np.uint8),
    ],
    ids=["width", "rank", "channels", "empty", "float64", "uint8"],
)
def test_other_arrays_are_refused(name: str, image: np.ndarray, small_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"Expected images as float32 of shape \(N, 3, 160, 160\)"):
        dec_export.engines.load(small_bundle, name)(image)


@pytest.mark.parametrize("threads", [0, -1, 10**9])
def test_absurd_threads_are_refused(threads: int) -> None:
    with pytest.raises(EngineError, match="threads must be from 1"):
        RunOptions(threads)


@without_gpu
def test_auto_is_onnxruntime_where_nothing_better_runs(small_bundle: Bundle) -> None:
    assert dec_export.engines.load(small_bundle).name == "onnxruntime"


@without_gpu
def test_the_cuda_provider_gives_way_only_when_it_may(small_bundle: Bundle) -> None:
    """The test uses the real provider on a machine where it cannot start."""
    with pytest.raises(EngineError, match=r"(does not start here|without CUDA).*--cpu-fallback"):
        dec_export.engines.load(small_bundle, "onnxruntime-cuda")
    engine = dec_export.engines.load(small_bundle, "onnxruntime-cuda", options=RunOptions(cpu_fallback=True))
    assert engine.name == "onnxruntime-cuda"
    assert engine.describe().device == "cpu", "the report must say what really ran"
    images = photographs(160, 2)
    with pytest.raises(EngineError, match="has no effect on 'auto'"):
        dec_export.engines.load(small_bundle, options=RunOptions(cpu_fallback=True))
    expected = dec_export.engines.load(small_bundle, "onnxruntime")(images)["logits"]
    assert (engine(images)["logits"] == expected).all()


def test_unknown_engines_are_refused(small_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="Did you mean 'onnxruntime'"):
        dec_export.engines.load(small_bundle, "onnx-runtime")


def test_a_file_that_is_no_model_is_said(tmp_path, small_bundle: Bundle) -> None:
    from dec_export.engines.onnxruntime import OnnxRuntimeEngine

    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot load the model"):
        OnnxRuntimeEngine(tmp_path / "model.onnx")
