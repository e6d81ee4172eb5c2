"""A bundle is written whole or not at all, is verified before it is read, and is never a mixture of two."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from safetensors.torch import load_file

from dec_export.bundle import store as bundles
from dec_export.bundle.store import Bundle, writing_bundle
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import BundleError, DecExportError, ExportError
from dec_export.pipeline import build as pipeline
from dec_export.recipe.model import Recipe
from tests.helpers import build_bundle
from tests.helpers.graphs import linear_model


@pytest.fixture
def copy(small_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle.path, tmp_path / "copy")


def test_a_bundle_has_the_promised_files(small_bundle: Bundle) -> None:
    names = {path.name for path in small_bundle.path.iterdir()}
    plans = {name for entry in small_bundle.manifest.plans.values() for name in entry.files}
    model = {"recipe.yaml", "model.onnx", "weights.safetensors"}
    assert names == {"manifest.json", "parity.json", "parity.html", *model, *plans}
    assert set(small_bundle.manifest.files) == names - {"manifest.json"}
    assert small_bundle.manifest.gate == "pass"
    assert small_bundle.parity is not None
    assert small_bundle.parity["engines"]["onnxruntime"]["gate"] == "pass"


def test_the_manifest_says_where_everything_comes_from(small_bundle: Bundle) -> None:
    manifest = json.loads((small_bundle.path / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["weights"]["backbone"] == "random"
    assert (manifest["solver"], manifest["precision"], manifest["opset"]) == ("unroll", "fp32", 18)
    assert {"python", "torch", "timm", "onnx", "dec-export"} <= set(manifest["versions"])
    assert manifest["engines"]["onnxruntime"]["gate"] == "pass"
    assert str(Path.cwd()) not in json.dumps(manifest)


def test_the_reference_comes_back_from_the_bundle(small_bundle: Bundle) -> None:
    state = load_file(small_bundle.path / "weights.safetensors")
    model = small_bundle.reference()
    assert small_bundle.recipe == model.recipe
    assert (model.backbone.head.weight == state["head.weight"]).all()


def test_two_builds_of_a_recipe_are_the_same_bytes(small_bundle: Bundle, small_recipe: Recipe, tmp_path: Path) -> None:
    again = build_bundle(small_recipe, tmp_path / "again", engines=["none"])
    for name in ("model.onnx", "weights.safetensors", "recipe.yaml"):
        assert again.manifest.files[name] == small_bundle.manifest.files[name], name
    assert again.manifest.gate == "not run"
    assert again.parity is None


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def edit_preprocessing(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit_manifest(path, preprocessing={**manifest["preprocessing"], **changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: flip_a_byte(p / "model.onnx"), "does not have the hash"),
        (lambda p: flip_a_byte(p / "weights.safetensors"), "does not have the hash"),
        (lambda p: (p / "model.onnx").write_bytes(b"short"), "altered or cut short"),
        (lambda p: (p / "recipe.yaml").unlink(), "is missing"),
        (lambda p: (p / "manifest.json").unlink(), "is not a bundle"),
        (lambda p: (p / "manifest.json").write_text("{"), "not a valid manifest"),
        (lambda p: (p / "manifest.json").write_text("[" * 100_000), "not a valid manifest"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest schema None"),
        (lambda p: (p / "manifest.json").write_text(" " * 2_000_000), "too many for a manifest"),
        (lambda p: edit_manifest(p, schema_version=2), "manifest schema 2"),
        (lambda p: edit_manifest(p, files={}), r"lists no model\.onnx"),
        (lambda p: edit_manifest(p, files={"../x": {"size": 1, "sha256": "0" * 64}}), "not a valid manifest"),
        (lambda p: edit_manifest(p, surprise=1), "not a valid manifest"),
        (lambda p: edit_manifest(p, recipe={}), "not a valid manifest"),
        (lambda p: edit_manifest(p, weights={}), "not a valid manifest"),
        (lambda p: edit_preprocessing(p, std=[0, 0, 0]), "not a valid manifest"),
        (lambda p: edit_preprocessing(p, crop_pct=1e-9), "not a valid manifest"),
        (lambda p: edit_preprocessing(p, size=64), "does not fit"),
        (lambda p: [(p / "model.onnx").unlink(), (p / "model.onnx").symlink_to(p / "recipe.yaml")], "is missing"),
    ],
)
def test_a_damaged_bundle_is_refused(damage: Callable[[Path], None], message: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_target_that_exists_is_left_alone(tmp_path: Path, copy: Path) -> None:
    before = leftovers(copy)
    with pytest.raises(BundleError, match="--force"), writing_bundle(copy):
        pytest.fail("nothing may be written")
    assert leftovers(copy) == before
    assert leftovers(tmp_path) == ["copy"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_replaces_bundles_only(kind: str, tmp_path: Path) -> None:
    target, precious = tmp_path / "target", tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    if kind == "folder":
        precious.rename(target)
    elif kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(precious)
    before = leftovers(tmp_path)
    with pytest.raises(BundleError, match="exists and is not a bundle"), writing_bundle(target, force=True):
        pytest.fail("nothing may be written")
    assert leftovers(tmp_path) == before


def test_force_replaces_a_bundle_whole(copy: Path, tmp_path: Path) -> None:
    with writing_bundle(copy, force=True) as staging:
        (staging / "new").write_text("new")
        assert (copy / "manifest.json").exists(), "the old one stays until the new one is done"
    assert leftovers(copy) == ["new"]
    assert leftovers(tmp_path) == ["copy"]


def fail_while_writing(out: Path, error: BaseException) -> None:
    with writing_bundle(out) as staging:
        (staging / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        fail_while_writing(tmp_path / "out", error)
    assert leftovers(tmp_path) == []


def test_a_failure_with_force_keeps_the_old_bundle(copy: Path, tmp_path: Path) -> None:
    before = leftovers(copy)
    with pytest.raises(RuntimeError), writing_bundle(copy, force=True):
        raise RuntimeError
    assert leftovers(copy) == before
    assert leftovers(tmp_path) == ["copy"]


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_while_replacing_keeps_one_of_the_two(
    at: int, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == at:
            raise SystemExit(143)
        rename(source, target)

    before = leftovers(copy)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(SystemExit), writing_bundle(copy, force=True) as staging:
        (staging / "new").write_text("new")
    assert leftovers(copy) == before
    assert leftovers(tmp_path) == ["copy"]


def test_a_bundle_that_cannot_be_put_back_is_kept_aside(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test lets another process take the name between the two renames."""
    rename, calls = os.rename, []

    def overtaken(source: Path, target: Path) -> None:
        calls.append(source)
        rename(source, target)
        if len(calls) == 1:
            copy.mkdir()
            (copy / "theirs").write_text("x")

    before = leftovers(copy)
    monkeypatch.setattr(os, "rename", overtaken)
    with pytest.raises(BundleError, match="is kept in"), writing_bundle(copy, force=True) as staging:
        (staging / "new").write_text("new")
    assert leftovers(copy) == ["theirs"]
    (aside,) = tmp_path.glob(".copy.*.replaced/copy")
    assert leftovers(aside) == before


def test_the_current_folder_is_not_replaced(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    for target in (Path(), Path(".."), copy):
        with pytest.raises(BundleError, match="current folder"), writing_bundle(target, force=True):
            pytest.fail("nothing may be written")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is full"):
        fail_while_writing(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert leftovers(tmp_path) == []


def test_too_little_space_is_said_before_the_work(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    monkeypatch.setattr(pipeline, "export", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(BundleError, match="MB free, and the bundle needs"):
        build_bundle(small_recipe, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_model_with_a_fixed_batch_is_no_bundle_even_without_a_proof(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ["n", 3, 160, 160]
    constant = numpy_helper.from_array(np.array([2, 3, 160, 160]), "constant")
    node = helper.make_node("Reshape", ["image", "constant"], ["logits"])
    specialised = linear_model(shape, shape, node, initializers=[constant])
    monkeypatch.setattr(pipeline, "export", lambda *_, **__: specialised)
    with pytest.raises(ExportError, match="does not run at every batch size"):
        build_bundle(small_recipe, tmp_path / "out", engines=["none"])
    assert leftovers(tmp_path) == []


def test_a_parent_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="Cannot write into"), writing_bundle(tmp_path / "file" / "out"):
        pytest.fail("nothing may be written")


def test_two_builds_into_one_target_do_not_mix(tmp_path: Path) -> None:
    barrier, outcomes = threading.Barrier(2), []

    def write(name: str) -> None:
        try:
            with writing_bundle(tmp_path / "out") as staging:
                for part in ("one", "two"):
                    (staging / part).write_text(name)
                barrier.wait()
            outcomes.append("written")
        except BundleError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(o == "written" for o in outcomes) == [False, True]
    assert "was created while" in next(o for o in outcomes if o != "written")
    assert (tmp_path / "out" / "one").read_text() == (tmp_path / "out" / "two").read_text()
    assert leftovers(tmp_path) == ["out"]


def test_files_are_readable_by_others(small_bundle: Bundle) -> None:
    umask = bundles.umask()
    assert small_bundle.path.stat().st_mode & 0o777 == 0o777 & ~umask
    for path in small_bundle.path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "newton"}, "Unknown solver 'newton'"),
        ({"precision": "fp8"}, "Unknown precision 'fp8'"),
        ({"solver_precision": "bf16"}, "Unknown solver precision 'bf16'"),
        ({"engines": ["none"], "engine_options": BuildOptions()}, "no such engine will be built"),
        ({"engines": ["onnxruntime"], "timing_cache": "timings"}, "leave --timing-cache out"),
        ({"engines": ["onnxrumtime"]}, "Did you mean 'onnxruntime'"),
        ({"engines": ["none", "torch"]}, "cannot be combined"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"seed": 2**64}, "seed must be"),
        ({"engines": "nonsense"}, "Unknown engine 'nonsense'"),
        ({"trace": True}, "A build does not trace engines"),
        ({"layers": True}, "or measure layers"),
    ],
)
def test_options_are_checked_before_anything_is_done(
    options: dict, message: str, small_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(DecExportError, match=message):
        build_bundle(small_recipe, tmp_path / "out", **options)
    assert leftovers(tmp_path) == []
