"""The TensorRT part of the served model.py is tested, which only a GPU can run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from dec_export import engines
from dec_export.bundle.store import Bundle
from dec_export.engines.registry import availability
from dec_export.engines.tensorrt.flavours import FLAVOURS
from dec_export.gpu import find_gpu
from dec_export.serving.triton.judge import distance, tolerance_of
from tests.conftest import photographs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", FLAVOURS)
def test_the_served_engine_answers_as_the_bundles(
    name: str, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = availability(name, find_gpu())
    if not found.can_run:
        pytest.skip(found.detail)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    from dec_export.serving.triton.python_models.engine_model import TensorRT

    entry = small_bundle.manifest.plans[name]  # type: ignore[index]
    served = TensorRT(small_bundle.path / entry.file, {"engine": name, "version": entry.version}, 0)
    # Of another runtime, since Polygraphy drives one TensorRT in a process.
    expected = engines.load(small_bundle, "onnxruntime")
    for count in (1, 3, 8):
        images = photographs(160, count)
        assert distance(served(images)["logits"], expected(images)["logits"]) <= tolerance_of(small_bundle)
