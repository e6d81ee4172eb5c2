"""The TensorRT part of the served model.py, which nothing but a GPU can run."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from dec_export import engines
from dec_export.bundle import Bundle
from tests.conftest import photographs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("name", ["tensorrt-rtx", "tensorrt"])
def test_the_served_engine_answers_as_the_bundles(
    name: str, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in small_bundle.manifest.plans:
        pytest.skip(f"the bundle holds no engine {name}")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    from dec_export.serving.python_models.engine_model import TensorRT

    entry: Any = small_bundle.manifest.plans[name]  # type: ignore[index]
    served = TensorRT(small_bundle.path / entry.file, {"engine": name, "version": entry.version}, 0)
    expected = engines.load(small_bundle, name)
    for count in (1, 3, 8):
        images = photographs(160, count)
        assert np.array_equal(served(images)["logits"], expected(images)["logits"])
