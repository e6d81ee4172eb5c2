"""NVIDIA's own plugin layer accepts the registration and calls its functions as TensorRT would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.libraries import has_package
from dec_plugins import plugin_support
from dec_plugins.compiler import compile_kernel
from dec_plugins.plans import plan_kernel
from dec_plugins.registration import register
from tests.plugins import standin_tensorrt

needs_stand_in = pytest.mark.skipif(
    not (has_package("tensorrt_bindings") and has_package("tensorrt_rtx_libs") and has_package("triton"))
    or shutil.which("cc") is None,
    reason="needs the wheels tensorrt-cu13-bindings, tensorrt-rtx and triton, and a C compiler for a stub",
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("standin")
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins.standin_tensorrt"],
        env=standin_tensorrt.environment(folder),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_stand_in
def test_registering_twice_registers_once(answers: dict[str, Any]) -> None:
    assert answers["registered"] == [[operator.op_type for operator in standin_tensorrt.OPERATORS], []]


@needs_stand_in
@pytest.mark.parametrize("operator", standin_tensorrt.OPERATORS, ids=lambda operator: operator.op_type)
def test_outputs_and_launches_are_what_the_plan_says(operator: Any, answers: dict[str, Any]) -> None:
    answer = answers["results"][standin_tensorrt.OPERATORS.index(operator)]
    names = {Format.FP32: "FLOAT", Format.FP16: "HALF"}
    assert answer["dtypes"] == [names[spec.format] for spec in operator.outputs()]
    kernel, plan = compile_kernel(operator), plan_kernel(operator)
    for batch, launch in zip(standin_tensorrt.BATCHES, answer["launches"], strict=True):
        assert launch == {
            "shapes": [[batch if n is None else n for n in spec.shape] for spec in operator.outputs()],
            "grid": list(plan.grid_for(batch)),
            "block": [kernel.threads, 1, 1],
            "shared": kernel.shared_bytes,
            "extra": 0,
            "entry": True,
        }


@needs_stand_in
def test_a_wrong_dtype_names_the_node(answers: dict[str, Any]) -> None:
    assert (
        "Node 's/convolve' (Convolve56x56Pool2V1): 'padded' must be float16 (batch, 64, 58, 58)" in answers["refusal"]
    )
    assert "found float32" in answers["refusal"]


def test_without_tensorrt_the_error_says_what_to_install() -> None:
    if plugin_support().available:
        pytest.skip("TensorRT is installed")
    with pytest.raises(EngineError, match="cannot be registered: TensorRT is not installed"):
        register(["KeepV1"])
