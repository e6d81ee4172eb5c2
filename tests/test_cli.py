"""The command line is run as a process, and its output and files are checked."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dec_export.bundle.store import Bundle
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel
from dec_export.reference.weights.fitting import published_state_dict
from tests.conftest import needs_rtx, without_gpu
from tests.helpers.commands import COMMAND, ENVIRONMENT, refused, run
from tests.helpers.texts import ADAPTER_CONFIG


def test_build_prints_the_contract_and_parity_follows(small_recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"
    done = run("build", "--recipe", small_recipe_file, "--samples", 2, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {"out", "files", "gate", "seconds", "weights"} <= set(facts)
    assert facts["gate"] == "pass"
    assert {"recipe.yaml", "model.onnx", "weights.safetensors", "parity.json", "parity.html"} <= set(facts["files"])
    assert "All weights are random" in done.stderr
    assert "lowering and ONNX export" in done.stderr
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]

    page = tmp_path / "page.html"
    done = run("parity", out, "--samples", 2, "--json", "--html", page)
    assert done.returncode == 0, done.stderr
    assert f"The report is in {page}." in done.stderr
    report = json.loads(done.stdout)
    assert "✓ PASS" in page.read_text(encoding="utf-8")
    assert "overwrite it with --force" in refused("parity", out, "--html", page)
    assert "is not a folder" in refused("parity", out, "--html", tmp_path / "none" / "page.html")
    wanted = {"engine", "gate", "samples", "outputs", "phi", "top1_agreement", "invariance", "amplification"}
    assert wanted <= set(report)
    assert {"max_abs", "rel_l2", "rel_l2_reference_fp32", "ratio"} <= set(report["outputs"]["logits"])
    assert {"metric", "reference", "engine"} <= set(report["invariance"])


def test_expose_phi_makes_them_outputs(small_recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = run(
        *("build", "--recipe", small_recipe_file, "--expose-phi", "--engine", "none", "--out", out, "--json"),
    )
    assert done.returncode == 0, done.stderr
    outputs = [output.name for output in Bundle.load(out).manifest.outputs]
    assert outputs == ["logits", "phi_x_0", "phi_y_0", "phi_x_1", "phi_y_1"]


def test_a_published_configuration_becomes_a_recipe_file(tmp_path: Path) -> None:
    config, out = tmp_path / "adapter_config.yaml", tmp_path / "mine.yaml"
    config.write_text(ADAPTER_CONFIG)
    printed = run("recipe", "import", config, "--entry", "dem_deit", "--backbone", "deit_s")
    assert printed.returncode == 0, printed.stderr
    done = run("recipe", "import", config, "--entry", "dem_deit", "--backbone", "deit_s", "--out", out, "--json")
    assert json.loads(done.stdout)["recipe"]["canonicalizer"]["coarse_resolution"] == [10, 4]
    assert out.read_text() == printed.stdout
    assert Recipe.load(out).backbone == Recipe.named("deit_s").backbone
    assert "resize is not antialiased" in printed.stderr
    assert "exists: choose another --out" in refused("recipe", "import", config, "--entry", "dem_deit", "--out", out)
    assert "one of base, base_deit, dem_deit, dem_resnet" in refused("recipe", "import", config)
    assert "Cannot read the recipe" in refused("recipe", "import", tmp_path / "none.yaml", "--entry", "a")


def test_a_published_checkpoint_becomes_a_bundle(small_recipe: Recipe, small_model: DecModel, tmp_path: Path) -> None:
    """The test follows docs/bring-your-checkpoint.md with a small model."""
    checkpoint, recipe, out = tmp_path / "model_best.pth.tar", tmp_path / "mine.yaml", tmp_path / "mine"
    torch.save({"epoch": 3, "model": published_state_dict(small_model)}, checkpoint)
    recipe.write_text(small_recipe.to_yaml())
    done = run(
        *("build", "--recipe", recipe, "--checkpoint", checkpoint, "--strict-weights", "--samples", 2),
        *("--engine", "onnxruntime", "--out", out, "--json"),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["gate"] == "pass"
    assert facts["weights"]["file"] == "model_best.pth.tar"


def test_a_checkpoint_is_used_and_recorded(small_recipe_file: Path, small_model: DecModel, tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "trained.safetensors", tmp_path / "bundle"
    save_file(published_state_dict(small_model), checkpoint)
    done = run(
        *("build", "--recipe", small_recipe_file, "--checkpoint", checkpoint, "--strict-weights"),
        *("--engine", "none", "--out", out, "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights"]["file"] == "trained.safetensors"
    weight = Bundle.load(out).reference().state_dict()["backbone.head.weight"]
    assert torch.equal(weight, small_model.state_dict()["backbone.head.weight"])


def test_inspect_shows_what_the_file_holds(small_bundle: Bundle) -> None:
    facts = json.loads(run("inspect", small_bundle.path, "--json").stdout)
    assert facts["operators"]["GridSample"] == 12, "ten sampled steps, the image and one block; BEiT would have fewer"
    assert facts["initializers"]["dtypes"].keys() <= {"float32", "int64"}
    assert facts["largest_tensors"][0]["bytes"] >= facts["largest_tensors"][-1]["bytes"] > 0
    text = run("inspect", small_bundle.path).stdout
    assert "GridSample" in text
    assert "unroll, convolutions in fp32" in text


@pytest.mark.parametrize(("solver", "words"), [("plugin", "10 WarpV1"), ("loop", "Loop")])
def test_inspect_shows_the_solver_s_form(solver: str, words: str, small_recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = run(*("build", "--recipe", small_recipe_file, "--solver", solver, "--engine", "none", "--out", out))
    assert done.returncode == 0, done.stderr
    text = run("inspect", out).stdout
    assert f"{solver}, convolutions in fp32" in text
    assert words in text
    facts = json.loads(run("inspect", out, "--json").stdout)
    assert facts["solver"] == solver
    assert bool(facts["dec_operators"]) == (solver == "plugin")
    # One iteration is written in a loop, all of them in functions.
    assert "GridSample" in facts["operators"]
    assert ("dec::WarpV1" in facts["functions"]) == (solver == "plugin")


@needs_rtx
def test_inspect_shows_what_an_engine_holds(small_bundle: Bundle) -> None:
    facts = json.loads(run("inspect", small_bundle.path, "--json").stdout)
    held = facts["engine_layers"]["tensorrt-rtx"]
    assert held["count"] == sum(held["by_type"].values()) > 100
    assert {binding["name"] for binding in held["bindings"]} == {"image", "logits"}
    assert held["largest_tensors"][0]["bytes"] >= held["largest_tensors"][-1]["bytes"] > 0
    text = run("inspect", small_bundle.path).stdout
    assert "Engine tensorrt-rtx" in text
    assert "8.0 and later" in text


@needs_rtx
@without_gpu
def test_an_engine_that_cannot_run_here_says_so(small_bundle: Bundle) -> None:
    assert "there is no GPU here" in refused("parity", small_bundle.path, "--engine", "tensorrt-rtx")
    assert "holds no engine 'tensorrt'" in refused("parity", small_bundle.path, "--engine", "tensorrt")
    assert "--cpu-fallback" in refused("parity", small_bundle.path, "--engine", "onnxruntime-cuda")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--batch", "8"), "MIN,OPT,MAX"),
        (("--batch", "4,2,1"), "MIN <= OPT <= MAX"),
        (("--batch", "0,1,1"), "greater than or equal to 1"),
        (("--compute-capability", "ampere"), "such as 8.9"),
        (("--engine", "tensorrt-rtx", "--version-compatible"), "--version-compatible is an option of TensorRT"),
        (("--engine", "onnxruntime", "--workspace", "64"), "no such engine will be built"),
        (("--timing-cache", "timings"), "leave --timing-cache out"),
    ],
)
def test_options_of_engines_are_never_ignored(options: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    assert sentence in refused("build", "--backbone", "deit_s", *options, "--out", tmp_path / "out")


def test_backbones_and_doctor_answer_in_both_forms() -> None:
    names = [b["name"] for b in json.loads(run("backbones", "--json").stdout)["backbones"]]
    assert "deit_s" in names
    assert "deit_s" in run("backbones").stdout
    facts = json.loads(run("doctor", "--json").stdout)
    assert {engine["name"]: engine["works"] for engine in facts["engines"]}["onnxruntime"]
    assert {"gpu", "nvidia_driver", "cuda"} <= set(facts["machine"])
    assert "CPUExecutionProvider" in facts["onnxruntime_providers"]
    for engine in facts["engines"]:
        assert engine["works"] or "pip install" in engine["detail"] or "no GPU" in engine["detail"]
    assert facts["photographs"]["count"] >= 8
    assert "onnxruntime" in run("doctor").stdout


def test_the_gate_that_fails_exits_with_one(small_bundle: Bundle, tmp_path: Path) -> None:
    """The bundle has correct hashes, but its model does not have the weights that it names."""
    import shutil

    import onnx
    from onnx import numpy_helper

    from dec_export.bundle.store import describe_files

    copy = shutil.copytree(small_bundle.path, tmp_path / "wrong")
    proto = onnx.load(copy / "model.onnx")
    largest = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * 1.2, largest.name))
    onnx.save(proto, copy / "model.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    manifest["files"] = {name: entry.model_dump() for name, entry in describe_files(copy).items()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = run("parity", copy, "--samples", 1, "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["gate"] == "fail"


def test_mistakes_get_one_sentence_and_leave_nothing(
    small_recipe_file: Path, small_model: DecModel, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_file(published_state_dict(small_model), other)
    out = tmp_path / "out"
    build = ("build", "--recipe", small_recipe_file, "--out", out)
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    Image.new("RGB", (300, 300)).save(broken / "a.jpg")
    (broken / "a.jpg").write_bytes((broken / "a.jpg").read_bytes()[:700])
    evil, flag = tmp_path / "evil.pth", tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(flag),)

    evil.write_bytes(pickle.dumps(Evil()))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(small_recipe_file.read_text() + "colour: blue\n")

    assert "Did you mean 'deit_s'" in refused("build", "--backbone", "deit-s", "--out", out)
    assert "Name a model" in refused("build", "--out", out)
    assert "holds no image" in refused(*build, "--images", empty)
    assert "No such file" in refused(*build, "--images", tmp_path / "none")
    assert "truncated" in refused(*build, "--images", broken)
    assert "refused" in refused(*build, "--checkpoint", evil)
    assert "'cls_token' is" in refused("build", "--backbone", "deit_t", "--checkpoint", other, "--out", out)
    assert not flag.exists()
    assert "unknown field 'colour'" in refused("build", "--recipe", wrong, "--out", out)
    assert "--force" in refused("build", "--recipe", small_recipe_file, "--out", empty)
    assert "never replaced" in refused("build", "--recipe", small_recipe_file, "--out", wrong)
    deep = tmp_path / "deep" / "er" / "out"
    assert "holds no image" in refused("build", "--recipe", small_recipe_file, "--images", empty, "--out", deep)
    assert not (tmp_path / "deep").exists()
    assert "Unknown solver 'newton', expected one of unroll, loop, plugin" in refused(*build, "--solver", "newton")
    assert "Unknown precision 'fp8'" in refused(*build, "--precision", "fp8")
    assert "Unknown solver precision 'bf16'" in refused(*build, "--solver-precision", "bf16")
    assert "is for classification, not for segmentation" in refused(*build, "--task", "segmentation")
    assert "is not a bundle" in refused("parity", empty)
    assert "is not a bundle" in refused("inspect", tmp_path / "nowhere")
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--backbone", "nonsense", "--out", "out"),
        ("build", "--backbone", "deit_s"),
        ("build", "--samples", "many", "--out", "out"),
        ("parity", "nowhere", "--frobnicate"),
        ("frobnicate",),
        ("inspect",),
    ],
)
def test_an_error_with_json_is_json(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_defect_is_neither_a_failed_gate_nor_a_wall_of_text(tmp_path: Path) -> None:
    """A library raises an exception that no code expects."""
    code = (
        "import dec_export.inspection as i\n"
        "i.list_backbones = lambda: 1 / 0\n"
        "from dec_export.cli import main\n"
        "main(['backbones', '--json'{}])"
    )
    done = subprocess.run([sys.executable, "-c", code.format("")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ZeroDivisionError" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-c", code.format(", '-v'")], capture_output=True, text=True)
    assert "Traceback" in done.stderr, "with -v a defect can be found"


def test_names_with_brackets_are_printed_as_they_are(small_bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(small_bundle.path, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["weights"]["detail"] = "trained [/on] a [red]cluster[/]"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = run("inspect", copy)
    assert done.returncode == 0, done.stderr
    assert "trained [/on] a [red]cluster[/]" in done.stdout


def test_a_full_standard_output_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "backbones", "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["Error: Cannot write to standard output: No space left on device."]


def test_a_reader_that_has_enough_is_no_error(small_bundle: Bundle) -> None:
    process = subprocess.Popen(
        [*COMMAND, "inspect", str(small_bundle.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait(timeout=60)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_target_is_said(small_recipe_file: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Cannot write into" in refused("build", "--recipe", small_recipe_file, "--out", tmp_path / "out")


def test_an_unwritable_file_system_is_said(small_recipe_file: Path) -> None:
    """No user, not even root, can create folders in /proc."""
    assert "Cannot write into" in refused("build", "--recipe", small_recipe_file, "--out", "/proc/out")


def start_build(recipe: Path, target: Path) -> subprocess.Popen[bytes]:
    """Start a build into the new folder `target`."""
    target.mkdir()
    return subprocess.Popen(
        [*COMMAND, "build", "--recipe", str(recipe), "--out", str(target / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )


def children(process: subprocess.Popen[bytes]) -> list[Path]:
    """The folders in /proc of a process's children."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [Path("/proc") / child for task in tasks for child in task.read_text().split()]


@needs_rtx
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_while_an_engine_is_built_ends_the_builder_too(
    number: int, small_recipe_file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "folder"
    process = start_build(small_recipe_file, target)
    deadline = time.monotonic() + 120
    while not any(target.glob("*/model.onnx")) or not children(process):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (builder,) = children(process)
    process.send_signal(number)
    process.communicate(timeout=60)
    while builder.exists() and "zombie" not in (builder / "status").read_text():
        assert time.monotonic() < deadline, "the builder goes on without anybody to build for"
        time.sleep(0.05)
    if number != signal.SIGKILL:  # which leaves no time to tidy up
        assert process.returncode == 128 + number
        assert list(target.iterdir()) == []
    assert not (target / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_leaves_nothing(number: int, small_recipe_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder"
    process = start_build(small_recipe_file, target)
    deadline = time.monotonic() + 60
    while not list(target.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(target.iterdir()), "the build should have begun"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    assert list(target.iterdir()) == []
