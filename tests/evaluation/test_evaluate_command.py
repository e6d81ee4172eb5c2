"""`dec-export evaluate`, from a folder of classes to tables, JSON, a page and an exit code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dec_export.bundle.store import Bundle
from tests.evaluation.trees import class_tree
from tests.helpers.commands import dec_export

HOSTILE = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = class_tree(tmp_path_factory.mktemp("tree"), 30)
    (folder / "class9").rename(folder / HOSTILE.replace("/", "|"))
    (folder / "class3" / "broken.png").write_bytes(b"no image")
    return folder


def run(bundle: Bundle, data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ("--engine", "onnxruntime", "--threads", "1", "--batch", "4", "--strength", "0.25")
    return dec_export("evaluate", str(bundle.path), "--data", str(data), *options, *arguments)


def test_the_whole_command(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    limits = ("--max-drop", "top1=90", "--max-drop", "nll=1")
    outcome = run(small_bundle, data, "--json", "--html", str(page), *limits)
    assert outcome.returncode == 0
    facts = json.loads(outcome.stdout)
    assert facts["images"] == 30
    assert list(facts["skipped"]) == ["class3/broken.png"]
    assert {model["name"] for model in facts["models"]} == {"onnxruntime", "torch"}
    assert [condition["name"] for condition in facts["conditions"]] == ["clean", "local scaling 0.25"]
    assert facts["gate"]["verdict"] == "passed"
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "broken.png" in text


def test_exit_codes_and_refusals(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    undecided = run(small_bundle, data, "--max-drop", "top1=0.01")
    assert undecided.returncode == 3
    assert "CANNOT TELL" in undecided.stdout
    for arguments, sentence in (
        (("--max-drop", "miou=1"), "on a metric that these data do not give"),
        (("--max-drop", "top1"), "must look like top1=0.5"),
        (("--html", str(data / "class1")), "is not a file"),
        (("--layout", "nothing"), "Unknown layout"),
        (("--class-index", str(tmp_path / "absent.txt")), "Cannot read the class index"),
    ):
        refused = run(small_bundle, data, *arguments)
        assert refused.returncode == 2
        assert sentence in refused.stderr
    assert "class3" in run(small_bundle, data, "--strict").stderr


def test_tables_fit_a_terminal_of_80_columns(small_bundle: Bundle, data: Path) -> None:
    lines = run(small_bundle, data).stdout.splitlines()
    rows = [line for line in lines if "│" in line]
    assert rows
    assert max(map(len, rows)) <= 80
