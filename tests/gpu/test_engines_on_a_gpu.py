"""Every engine runs on a real GPU. `scripts/gpu_check.sh` runs these tests; without a GPU they are skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dec_export.bundle.store import Bundle
from dec_export.engines.registry import availability, engine_spec, engine_specs
from dec_export.gpu import find_gpu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU_ENGINES = [spec.name for spec in engine_specs() if spec.needs_gpu]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", GPU_ENGINES)
def test_a_gpu_engine_passes_the_gate(name: str, precision: str, small_recipe_file: Path, tmp_path: Path) -> None:
    """The engine runs in its own process, because Polygraphy can use only one TensorRT in a process."""
    found = availability(name, find_gpu())
    if not found.can_run:
        pytest.skip(found.detail)
    command = [sys.executable, "-m", "dec_export", "build", "--recipe", str(small_recipe_file), "--json"]
    command += ["--engine", name, "--precision", precision, "--expose-phi", "--out", str(tmp_path / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["gate"] == "pass"
    report = facts["parity"]["engines"][name]
    assert report["engine_details"]["device"] not in ("cpu", None)
    if engine_spec(name).build is not None:
        assert Bundle.load(tmp_path / "gpu").manifest.plans[name].file
