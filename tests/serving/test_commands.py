"""The commands of `dec-export triton` are run as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dec_export.bundle.store import Bundle
from tests.serving.conftest import Served
from tests.serving.server import needs_server


def triton(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dec_export", "triton", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def test_a_bundle_becomes_a_repository_and_mistakes_one_sentence(digits_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "models"
    done = triton("--device", "cpu", digits_bundle.path, "--repository", root, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["models"] == dict.fromkeys(("digits", "digits_pre", "digits_post", "digits_classify"), 1)
    assert Path(facts["run_script"]).is_file()
    assert "gate is 'not run'" in done.stderr
    for arguments, sentence in (
        ((digits_bundle.path, "--repository", root, "--backend", "tensorrt"), "holds no TensorRT plan"),
        ((digits_bundle.path, "--repository", root, "--ensemble", "segment"), "a model of classification"),
        ((digits_bundle.path, "--repository", root, "--min-server", "new"), "--min-server expects"),
        ((digits_bundle.path,), "Missing option '--repository'"),
        ((tmp_path, "--repository", root), "is not a bundle"),
        (("check", "127.0.0.1:9", "--model", "digits"), "does not answer"),
    ):
        refused = triton(*arguments)
        assert refused.returncode == 2, arguments
        assert sentence in refused.stderr
        assert refused.stderr.startswith("Error: ")
        assert refused.stderr.count("\n") == 1
    assert {path.name for path in (root / "digits").iterdir() if path.is_dir()} == {"1", "warmup"}


@needs_server
def test_check_says_whether_the_server_agrees(served: Served) -> None:
    url, bundle = served.server.http_url, served.digits.path
    done = triton("check", url, "--model", "digits", "--bundle", bundle, "--engine", "onnxruntime", "--requests", 4)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 answers are the same, logits identical" in done.stdout
    assert "latency in ms" in done.stdout
    compared = triton("check", url, "--model", "maps", "--bundle", served.maps.path, "--json", "--requests", 4)
    assert json.loads(compared.stdout)["agrees"] is True
    alone = triton("check", url, "--model", "digits", "--json", "--requests", 4)
    assert json.loads(alone.stdout)["agrees"] is None
    wrong = triton("check", url, "--model", "planned", "--bundle", served.maps.path)
    assert wrong.returncode == 2
    assert "No ensemble of 'planned' answers" in wrong.stderr
