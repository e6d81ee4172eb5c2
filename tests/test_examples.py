"""The examples run as they stand; that of the server's client is in tests/serving."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from dec_export.bundle.store import Bundle
from dec_export.data.images import open_image, packaged_photographs
from dec_export.data.preprocessing import Preprocessing
from examples import onnxruntime_alone

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PHOTOGRAPH = packaged_photographs()[0]

pytestmark = pytest.mark.slow


def run(*arguments: str | Path) -> Any:
    """What a program of `examples/` prints, as JSON."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Any]:
    """The bundle of `build_and_prove.py`, and what the program printed."""
    out = tmp_path_factory.mktemp("examples") / "digits"
    found = run(EXAMPLES / "build_and_prove.py", out)
    return Bundle.load(out), found


def test_every_example_is_listed_and_short() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.glob("*.py"):
        assert f"`{file.name} " in listed
        assert len(file.read_text().splitlines()) <= 50


def test_build_and_prove(built: tuple[Bundle, Any]) -> None:
    bundle, found = built
    assert found["gate"] == "pass"
    assert set(bundle.manifest.engines) == {"onnxruntime"}
    right = sum(a == b for a, b in zip(found["classes"], found["labels"], strict=True))
    assert len(found["classes"]) == 8
    assert right >= 6, "the trained model is right on nine of ten pictures"


def test_onnx_runtime_alone(built: tuple[Bundle, Any]) -> None:
    """The program needs neither dec-export nor PyTorch, and gives what the bundle's session gives, to the bit."""
    bundle, _ = built
    absent = "import sys, runpy; sys.modules.update(dict.fromkeys(('dec_export', 'torch', 'timm', 'onnx')))"
    program = EXAMPLES / "onnxruntime_alone.py"
    code = f"{absent}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    found = run("-c", code, program, bundle.path, PHOTOGRAPH)
    session = onnxruntime.InferenceSession(str(bundle.onnx_path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": bundle.preprocessing.apply(open_image(PHOTOGRAPH))[None]})
    assert found == {"class": int(logits[0].argmax()), "logit": float(logits[0].max())}


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (64, 64), (71, 300), (73, 73)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize(("interpolation", "squash"), [("bicubic", False), ("bilinear", True), ("lanczos", False)])
def test_onnx_runtime_alone_prepares_images_as_the_bundle_to_the_bit(
    size: tuple[int, int], mode: str, interpolation: Any, squash: bool
) -> None:
    preprocessing = Preprocessing(64, 0.875, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), squash)
    image = open_image(PHOTOGRAPH).resize(size, Image.Resampling.BILINEAR).convert(mode)
    # As a manifest holds it.
    as_json = json.loads(json.dumps(dataclasses.asdict(preprocessing)))
    found = onnxruntime_alone.prepare(image, as_json)
    assert found.dtype == np.float32
    assert np.array_equal(found[0], preprocessing.apply(image))
