"""Repositories: whole, versioned, read by the official protobuf, and refused before anything is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dec_export.bundle.store import Bundle
from dec_export.errors import BundleError, DecExportError, ServingError
from dec_export.serving.triton import journal as journals
from dec_export.serving.triton.backends import BACKENDS
from dec_export.serving.triton.config import Kind
from dec_export.serving.triton.models import Serving, served_models, shared_memory_of
from dec_export.serving.triton.options import ServingOptions
from dec_export.serving.triton.prepare import warmup_photograph
from dec_export.serving.triton.repository import Written, write_repository
from dec_export.tasks import TASKS
from tests.serving.conftest import with_plan

MODELS = ("digits", "digits_pre", "digits_post", "digits_classify")


# The version and the GPU that the plan of `with_plan` is for, whatever is installed here.
ON_PLAN = {"tensorrt_version": "10.9.0.34", "compute_capability": "9.0"}


def write(bundle: Bundle, root: Path, **options: Any) -> Written:
    return write_repository(bundle, root, ServingOptions(**{"device": "cpu", **options}))


def parsed(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_repository_holds_model_folders_alone(digits_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    written = write(digits_bundle, root)
    assert written.versions == dict.fromkeys(MODELS, 1)
    assert {path.name for path in root.iterdir()} == set(MODELS)
    assert {path.name for path in tmp_path.iterdir()} == {"repo", "repo-digits.md", "repo-run.sh"}
    for name in MODELS:
        assert parsed(root / name).name == name
        assert (root / name / "1").is_dir()
    assert (root / "digits" / "1" / "model.onnx").read_bytes() == digits_bundle.onnx_path.read_bytes()


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "tensorrt"])
def test_every_configuration_is_what_a_server_needs(backend: str, digits_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_plan(digits_bundle) if backend == "tensorrt" else digits_bundle
    options = {"device": "gpu", "tensorrt_version": "10.9.0", "compute_capability": "9.0"}
    write(bundle, tmp_path / "repo", backend=backend, instances=2, max_batch=4, **options)
    for name in MODELS:
        config = parsed(tmp_path / "repo" / name)
        assert config.max_batch_size == 4
        assert config.version_policy.latest.num_versions == 1
        assert not config.model_transaction_policy.decoupled
        if name == "digits_classify":
            assert [step.model_name for step in config.ensemble_scheduling.step] == [*MODELS[1:2], "digits", MODELS[2]]
            continue
        assert config.backend == (backend if name == "digits" else "python")
        (group,) = config.instance_group
        assert group.count == 2
        assert group.kind == (group.KIND_GPU if name == "digits" else group.KIND_CPU)
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, 4]
        for warmup in config.model_warmup:
            for tensor in warmup.inputs.values():
                assert (tmp_path / "repo" / name / "warmup" / tensor.input_data_file).stat().st_size > 0
    engine = parsed(tmp_path / "repo" / "digits")
    if backend == "tensorrt":
        assert list(engine.instance_group[0].profile) == ["0"]
        assert engine.optimization.cuda.graphs
        assert [spec.batch_size for spec in engine.optimization.cuda.graph_spec] == [1, 2, 4]
    elif backend == "python":
        assert not engine.HasField("optimization")


def test_a_bundle_that_comes_again_is_a_new_version_and_the_old_one_stays(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    root = tmp_path / "repo"
    write(digits_bundle, root)
    before = everything(root)
    assert write(digits_bundle, root, max_batch=2).versions == dict.fromkeys(MODELS, 2)
    after = everything(root)
    for name, content in before.items():
        if "/1/" in name:
            assert after[name] == content
    assert parsed(root / "digits").max_batch_size == 2
    assert {path.name for path in (root / "digits").iterdir() if path.is_dir()} == {"1", "2", "warmup"}


def test_bundles_live_side_by_side(digits_bundle: Bundle, map_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    write(digits_bundle, root)
    write(map_bundle, root)
    (output,) = parsed(root / "digits_segmentation_segment").output
    assert (output.name, list(output.dims)) == ("class_map", [64, 64])
    assert len(list(root.iterdir())) == 8
    assert {"repo-digits.md", "repo-digits_segmentation.md"} <= {path.name for path in tmp_path.iterdir()}


def test_the_run_script_serves_all_bundles_of_the_repository(
    digits_bundle: Bundle, map_bundle: Bundle, tmp_path: Path
) -> None:
    def memory() -> int:
        found = re.search(r"--shm-size=(\d+)m", (tmp_path / "repo-run.sh").read_text())
        assert found is not None
        return int(found[1])

    write(digits_bundle, tmp_path / "repo", device="gpu")
    alone = memory()
    write(map_bundle, tmp_path / "repo", instances=2)
    assert memory() > 2 * alone
    assert "--gpus all" in (tmp_path / "repo-run.sh").read_text(), "digits still needs it"
    write(digits_bundle, tmp_path / "repo", device="cpu")
    assert "--gpus" not in (tmp_path / "repo-run.sh").read_text()


def test_no_tf32_where_onnx_runtime_runs_on_a_gpu(digits_bundle: Bundle, tmp_path: Path) -> None:
    write(digits_bundle, tmp_path / "repo", backend="onnxruntime", device="gpu")
    (accelerator,) = parsed(tmp_path / "repo" / "digits").optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_any_batch_that_is_offered_can_be_written(digits_bundle: Bundle, tmp_path: Path) -> None:
    write(digits_bundle, tmp_path / "repo", max_batch=4096, min_server=(2, 64))
    assert parsed(tmp_path / "repo" / "digits_classify").max_batch_size == 4096


def test_labels_are_those_of_the_file(digits_bundle: Bundle, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {i} é\n" for i in range(10)))
    write(digits_bundle, tmp_path / "repo", labels=labels)
    assert (tmp_path / "repo" / "digits" / "labels.txt").read_text() == labels.read_text()
    facts = json.loads((tmp_path / "repo" / "digits_post" / "1" / "serving.json").read_text())
    assert facts["labels"][3] == "digit 3 é"


def bad_labels(tmp_path: Path) -> Path:
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    return tmp_path / "few.txt"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "caffe"}, "Unknown backend 'caffe', expected one of tensorrt, onnxruntime, python"),
        ({"device": "tpu"}, "Unknown device 'tpu', expected gpu or cpu"),
        ({"backend": "tensorrt"}, "holds no TensorRT plan: build it with --engine tensorrt"),
        ({"ensemble": "segment"}, "is a model of classification, which needs the ensemble 'classify'"),
        ({"max_batch": 0}, "--max-batch must be from 1 to 4096"),
        ({"name": "../evil"}, "choose another --name"),
        ({"labels": "nowhere.txt"}, "Cannot read the labels"),
        ({"labels": bad_labels}, "must name each of the model's 10 classes on a line, found 2 lines"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_written(
    options: dict[str, Any], sentence: str, digits_bundle: Bundle, tmp_path: Path
) -> None:
    options = {name: value(tmp_path) if callable(value) else value for name, value in options.items()}
    with pytest.raises(ServingError, match=sentence.replace("(", r"\(")):
        write(digits_bundle, tmp_path / "deep" / "repo", **options)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("flavour", "options", "sentence"),
    [
        ("tensorrt", {"tensorrt_version": "10.9.0.99"}, "the server has 10.9.0.99"),
        (
            "tensorrt",
            {"tensorrt_version": "10.13.2"},
            "built with TensorRT 10.9.0.34 and runs only with this version, but the server has 10.13.2",
        ),
        ("tensorrt", {"compute_capability": "8.9"}, "for GPUs of compute capability 9.0, but the server's GPU has 8.9"),
        ("tensorrt", {"compute_capability": "hopper"}, "--compute-capability expects a number as in 9.0"),
        ("tensorrt", {"max_batch": 9}, "--max-batch must be at most 8, for which the plan was built, found 9"),
        ("tensorrt", {"backend": "tensorrt", "device": "cpu"}, "The tensorrt backend needs a GPU"),
        ("tensorrt-rtx", {"backend": "tensorrt"}, "its plan of TensorRT for RTX runs with --backend python"),
        ("tensorrt-rtx", {"tensorrt_version": "1.2.0.54"}, "the server has 1.2.0.54"),
    ],
)
def test_a_plan_for_another_machine_is_refused(
    flavour: str, options: dict[str, Any], sentence: str, digits_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match=sentence):
        write(with_plan(digits_bundle, flavour), tmp_path / "repo", **{"device": "gpu", **ON_PLAN, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_takes_no_single_image_is_refused(digits_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="accepts batches of at least 2 images"):
        write(with_plan(digits_bundle, batch=(2, 4, 8)), tmp_path / "repo", device="gpu", **ON_PLAN)


def test_an_altered_bundle_is_refused(digits_bundle: Bundle, tmp_path: Path) -> None:
    copied = tmp_path / "bundle"
    shutil.copytree(digits_bundle.path, copied)
    data = bytearray((copied / "model.onnx").read_bytes())
    data[-1] ^= 1
    (copied / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="was altered"):
        Bundle.load(copied)
    # Altered after it was opened.
    with pytest.raises(BundleError, match="not the file that the manifest describes"):
        write(Bundle(copied, digits_bundle.manifest), tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_another_task_under_the_same_name_is_refused(digits_bundle: Bundle, map_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    write(digits_bundle, root)
    before = everything(tmp_path)
    with pytest.raises(ServingError, match="has a model 'digits' already, which takes or gives other tensors"):
        write(map_bundle, root, name="digits")
    with pytest.raises(ServingError, match="has a model 'digits' already"):
        write(digits_bundle, root, backend="onnxruntime")
    assert everything(tmp_path) == before


def test_a_model_of_somebody_else_is_never_touched(digits_bundle: Bundle, tmp_path: Path) -> None:
    foreign = tmp_path / "repo" / "digits_post"
    foreign.mkdir(parents=True)
    (foreign / "config.pbtxt").write_text("theirs")
    with pytest.raises(ServingError, match=r"'digits_post' already.*not written by dec-export"):
        write(digits_bundle, tmp_path / "repo")
    assert everything(tmp_path) == {"repo/digits_post/config.pbtxt": b"theirs"}


def names_of_moves(monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> list[Path]:
    """Where renames lead, as they happen; the one of that number fails."""
    moved: list[Path] = []

    def wrap(move: Any) -> Any:
        def wrapped(source: Any, target: Any) -> None:
            if len(moved) == fails_at:
                moved.append(Path())
                raise OSError(28, "No space left on device", str(target))
            moved.append(Path(target))
            move(source, target)

        return wrapped

    monkeypatch.setattr(journals.os, "rename", wrap(os.rename))
    monkeypatch.setattr(journals.os, "replace", wrap(os.replace))
    return moved


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_failure_at_any_move_leaves_everything_as_it_was(again: bool, digits_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    if again:
        write(digits_bundle, root)
    before = everything(tmp_path)
    fails_at = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            moved = names_of_moves(patch, fails_at)
            try:
                write(digits_bundle, root, max_batch=2, name="digits")
                break
            except DecExportError as error:
                sentence = str(error)
        assert "No space left on device" in sentence
        assert everything(tmp_path) == before
        fails_at += 1
    # Four models, or the version and every file beside it; and what lies beside the repository.
    assert fails_at == len(moved) == (4 + 13 if again else 4) + 2


def test_whatever_a_server_reads_comes_after_what_it_needs(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repo"
    moved = names_of_moves(monkeypatch)
    write(digits_bundle, root)
    assert [path.name for path in moved[:4]] == ["digits", "digits_pre", "digits_post", "digits_classify"]
    del moved[:]
    write(digits_bundle, root)
    versions = [i for i, path in enumerate(moved) if path.name == "2"]
    configurations = [i for i, path in enumerate(moved) if path.name == "config.pbtxt"]
    assert len(versions) == len(configurations) == 4
    assert max(versions) < min(configurations)
    assert moved[configurations[-1]].parent.name == "digits_classify", "the ensemble's is the last of all"
    for i in configurations:
        assert not [path for path in moved[i + 1 :] if path.parent == moved[i].parent]


def test_two_writers_at_once_write_two_versions(digits_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: write(digits_bundle, root).versions["digits"], range(4)))
    assert sorted(found) == [1, 2, 3, 4]
    assert {path.name for path in (root / "digits").iterdir() if path.is_dir()} == {"1", "2", "3", "4", "warmup"}


@pytest.mark.parametrize("spelling", [".", "link"])
def test_a_repository_is_the_folder_that_is_meant(
    spelling: str, digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root if spelling == "." else tmp_path)
    write(digits_bundle, Path(spelling))
    assert {path.name for path in root.iterdir()} == set(MODELS)
    assert (tmp_path / "repo-run.sh").is_file()


def test_the_run_script_is_a_script(digits_bundle: Bundle, tmp_path: Path) -> None:
    written = write(digits_bundle, tmp_path / "repo")
    assert written.run_script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["/bin/sh", "-n", str(written.run_script)], check=True)
    unset = subprocess.run([str(written.run_script)], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert unset.returncode != 0
    assert "TRITON_IMAGE" in unset.stderr
    text = written.readme.read_text()
    assert "docker run --rm --init --shm-size=" in text
    assert "dec-export triton check localhost:8000 --model digits" in text
    assert "--gpus" not in text


def test_shared_memory_grows_with_what_passes_through_it(digits_bundle: Bundle) -> None:
    def needed(instances: int, batch: int) -> int:
        serving = Serving(
            task=TASKS["classification"],
            name="d",
            backend=BACKENDS["python"],
            engine="onnxruntime",
            kind=Kind.KIND_CPU,
            instances=instances,
            max_batch=batch,
            labels=["x"] * 10,
            top_k=5,
            photograph=warmup_photograph(),
        )
        return sum(map(shared_memory_of, served_models(digits_bundle, serving)))

    encoded, image, logits, answers = 16 << 20, 4 * 3 * 64 * 64, 40, 5 * (4 + 4 + 256)
    feature_map = 4 * 64 * 8 * 8
    each = (encoded + image) + (image + logits + feature_map) + (logits + answers)
    for instances, batch in ((1, 1), (2, 8), (4, 32)):
        assert needed(instances, batch) == 2 * instances * batch * each
