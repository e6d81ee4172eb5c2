"""The builder of TensorRT for RTX runs on the CPU, and each of its failures gives an error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from dec_export.bundle.store import Bundle
from dec_export.engines import load
from dec_export.engines.tensorrt import build as builds
from dec_export.engines.tensorrt.build import build_plan
from dec_export.engines.tensorrt.flavours import TENSORRT, TENSORRT_RTX, load_backend
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.engines.tensorrt.plan import read_version
from dec_export.errors import BundleError, EngineError
from dec_export.libraries import version_of_package
from dec_export.progress import reporting
from tests.conftest import needs_rtx, without_gpu
from tests.helpers.graphs import linear_model

pytestmark = needs_rtx


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the model image (n, 3, 4, 4) -> Relu -> logits, whose engine is built in a second."""
    path = tmp_path / "model.onnx"
    node = helper.make_node("Relu", ["image"], ["logits"])
    onnx.save(linear_model(["n", 3, 4, 4], ["n", 3, 4, 4], node), path)
    return path


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "model.onnx")


def test_the_bundles_engine_is_what_the_manifest_says(small_bundle: Bundle) -> None:
    entry = small_bundle.manifest.plans["tensorrt-rtx"]
    assert entry.version == version_of_package("tensorrt_rtx")
    assert read_version(small_bundle.path / entry.file, TENSORRT_RTX) == entry.version
    assert (entry.compute_capabilities, entry.and_later) == (("8.0",), True)
    assert entry.options.batch == (1, 8, 32)
    assert entry.precision["float32"].found == entry.precision["float32"].graph > 50
    # The guard against pixels that are not finite compares, and reshapes what it compared.
    kinds = {part for name in entry.layers.by_dtype for part in name.split("+")}
    assert kinds <= {"float32", "int32", "bool", "none"}
    contents = json.loads((small_bundle.path / entry.layers_file).read_text())
    image, logits = contents["bindings"]
    assert image["profile"] == [[n, 3, 160, 160] for n in (1, 8, 32)]
    assert (logits["dtype"], logits["shape"]) == ("float32", [-1, 10])


@pytest.mark.parametrize("batch", [(1, 1, 1), (2, 3, 5)])
def test_any_profile_is_built_and_read_back(batch: tuple[int, int, int], model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with reporting(lambda detail, _: told.append(detail)):
        entry = build_plan(TENSORRT_RTX, model, tmp_path, BuildOptions(batch=batch), gpu=None)
    assert entry.options.batch == batch
    profile = json.loads((tmp_path / entry.layers_file).read_text())["bindings"][0]["profile"]
    assert [shape[0] for shape in profile] == list(batch)
    assert told, "a long build shows what it is doing"


def test_chosen_gpus_are_recorded(model: Path, tmp_path: Path) -> None:
    options = BuildOptions(compute_capabilities=("8.9", "12.0"))
    entry = build_plan(TENSORRT_RTX, model, tmp_path, options, gpu=None)
    assert (entry.compute_capabilities, entry.and_later) == (("8.9", "12.0"), False)


def test_a_gpu_that_tensorrt_does_not_know_is_refused(model: Path, tmp_path: Path) -> None:
    options = BuildOptions(compute_capabilities=("8.9", "6.1"))
    with pytest.raises(EngineError, match=r"does not build for compute capability 6\.1, expected one of .*8\.9"):
        build_plan(TENSORRT_RTX, model, tmp_path, options, gpu=None)
    assert leftovers(tmp_path) == []


def test_too_small_a_workspace_is_said(small_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="raise --workspace or choose a smaller largest batch"):
        build_plan(TENSORRT_RTX, small_bundle.onnx_path, tmp_path, BuildOptions(workspace_bytes=1 << 20), gpu=None)
    assert leftovers(tmp_path) == []


def test_an_operator_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("image", "logits"))
    node = helper.make_node("Nonsense", ["image"], ["logits"], "odd", domain="nowhere")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [image], [logits]), opset_imports=opsets),
        tmp_path / "model.onnx",
    )
    with pytest.raises(EngineError, match=r"cannot parse the ONNX model: .*'odd' \(Nonsense\)"):
        build_plan(TENSORRT_RTX, tmp_path / "model.onnx", tmp_path, BuildOptions(), gpu=None)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its memory ran out"),
        ("import os; os.kill(os.getpid(), 11)", "crashed \\(SIGSEGV\\)"),
        (
            "raise SystemExit('a library said this')",
            "ended with exit code 1; the end of its output: a library said this",
        ),
        ("import sys; sys.stdin.readline()", "ended with exit code 0"),
        ('print(\'{"errno": 28, "message": "No space left on device", "file": "x"}\')', "No space left"),
    ],
)
def test_a_builder_that_dies_is_reported(
    code: str, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "_WORKER", [sys.executable, "-c", code])
    with pytest.raises((EngineError, OSError), match=message):
        build_plan(TENSORRT_RTX, model, tmp_path, BuildOptions(), gpu=None)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="limits memory with util-linux's prlimit")
def test_a_real_lack_of_memory_leaves_no_engine(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "_WORKER", ["prlimit", f"--as={600 << 20}", *builds._WORKER])
    with pytest.raises(EngineError, match=r"memory ran out|too little memory|does not load|ended with|crashed"):
        build_plan(TENSORRT_RTX, small_bundle.onnx_path, tmp_path, BuildOptions(), gpu=None)
    assert leftovers(tmp_path) == []


def test_a_builder_without_a_parent_ends(small_bundle: Bundle, tmp_path: Path) -> None:
    """A build finishes while its parent runs, and ends early after its parent has ended."""
    request = {
        "flavour": "tensorrt-rtx",
        "options": {},
        "onnx": str(small_bundle.onnx_path),
        "plan": str(tmp_path / "plan"),
        "layers": str(tmp_path / "layers"),
        "timing_cache": None,
    }
    for parent_stays in (True, False):
        worker = subprocess.Popen(
            builds._WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        if not parent_stays:
            worker.stdin.close()
        assert ('"done"' in worker.stdout.read()) is parent_stays
        if parent_stays:
            worker.stdin.close()
        assert (worker.wait(timeout=60) == 0) is parent_stays


def test_tensorrt_proper_says_what_is_missing(model: Path, tmp_path: Path) -> None:
    if version_of_package("tensorrt"):
        pytest.skip("TensorRT is installed")
    with pytest.raises(EngineError, match="TensorRT is not installed"):
        build_plan(TENSORRT, model, tmp_path, BuildOptions(), gpu=None)


def test_one_process_drives_one_flavour(monkeypatch: pytest.MonkeyPatch) -> None:
    load_backend(TENSORRT_RTX)
    monkeypatch.setattr("dec_export.engines.tensorrt.flavours.why_missing", lambda _: None)
    with pytest.raises(EngineError, match="in another process"):
        load_backend(TENSORRT)


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def disguise(path: Path) -> None:
    """Write a plan of TensorRT under the name of a plan for TensorRT for RTX."""
    path.write_bytes(TENSORRT.tag + path.read_bytes()[4:])


@without_gpu
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_middle, "does not have the hash"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "it was cut short"),
        (lambda path: path.write_bytes((path.parent / "model.onnx").read_bytes()), "is something else"),
        (disguise, "should be a plan of TensorRT for RTX and is a plan of TensorRT:"),
        (Path.unlink, "is missing"),
    ],
    ids=["one bit", "truncated", "another file of the bundle", "renamed", "gone"],
)
def test_a_plan_that_changes_after_the_bundle_was_opened_is_refused(
    damage: object, message: str, small_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = Bundle.load(shutil.copytree(small_bundle.path, tmp_path / "copy"))
    damage(bundle.path / "model.rtx.plan")  # type: ignore[operator]
    with pytest.raises(BundleError, match=message):
        load(bundle, "tensorrt-rtx")
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle.path)
