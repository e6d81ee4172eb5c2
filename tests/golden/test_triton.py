"""The model repositories that are written for Triton Inference Server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.builds import Builds
from tests.golden.command import succeed
from tests.golden.normalise import normalise_json, without_folder
from tests.golden.store import Golden

LABELS = "".join(f"digit {i}\n" for i in range(10))
# name: (bundle, options).
REPOSITORIES: dict[str, tuple[str, tuple[object, ...]]] = {
    "python_cpu": ("tiny", ("--device", "cpu")),
    "python_gpu": ("plugin_fp16", ("--backend", "python", "--name", "other", "--instances", 2, "--max-batch", 16)),
    "onnxruntime_cpu": ("maps", ("--backend", "onnxruntime", "--device", "cpu")),
    "tapped": ("alone", ("--device", "cpu", "--labels", "{labels}", "--min-server", "2.40")),
    "unproven": ("loop", ("--device", "cpu", "--ensemble", "classify")),
}


def _write(name: str, builds: Builds, folder: Path) -> object:
    bundle, options = REPOSITORIES[name]
    labels = folder / "labels.txt"
    labels.write_text(LABELS)
    given = [labels if option == "{labels}" else option for option in options]
    outcome = succeed("triton", builds[bundle].path, "--repository", folder / "models", *given, "--json")
    labels.unlink()
    return outcome.facts


@pytest.mark.parametrize("name", REPOSITORIES)
def test_repository(name: str, builds: Builds, golden: Golden, tmp_path: Path) -> None:
    facts = _write(name, builds, tmp_path)
    golden.check_json(f"json/triton_{name}.json", normalise_json(facts, tmp_path))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    golden.check_entry("triton/files.json", name, files)
    for path in (tmp_path / file for file in files):
        kept = f"{name}/{path.relative_to(tmp_path).as_posix()}"
        if path.name == "config.pbtxt":
            golden.check_text(f"triton/{kept}", path.read_text(encoding="utf-8"))
        elif path.name in ("dec_export.json", "serving.json"):
            content = normalise_json(json.loads(path.read_text(encoding="utf-8")), tmp_path)
            golden.check_json(f"triton/{kept}", content)
        elif path.name == "labels.txt":
            golden.check_text(f"triton/{kept}", path.read_text(encoding="utf-8"))
        elif path.parent == tmp_path:
            golden.check_text(f"texts/triton/{kept}", without_folder(path.read_text(encoding="utf-8"), builds.folder))


def test_what_is_said_of_a_repository(builds: Builds, golden: Golden, tmp_path: Path) -> None:
    outcome = succeed("triton", builds["loop"].path, "--repository", tmp_path / "models", "--device", "cpu")
    golden.check_text("texts/triton.txt", without_folder(outcome.out, tmp_path))
    golden.check_text("texts/triton_stderr.txt", without_folder(outcome.err, tmp_path))


def test_a_second_version(builds: Builds, golden: Golden, tmp_path: Path) -> None:
    _write("python_cpu", builds, tmp_path)
    facts = _write("python_cpu", builds, tmp_path)
    golden.check_json("json/triton_second_version.json", normalise_json(facts, tmp_path))
