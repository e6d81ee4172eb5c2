"""The commands for segmentation and traces run on the trained digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dec_export.bundle.store import Bundle
from tests.helpers.commands import dec_export


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmentation") / "digits"
    build = ("build", "--backbone", "digits", "--task", "segmentation", "--engine", "onnxruntime", "--threads", 1)
    done = dec_export(*build, "--samples", 4, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "mIoU, engine" in done.stdout
    assert "EqE, float32 reference" in done.stdout
    assert "All weights come from digits_segmentation.safetensors" in done.stderr
    return out


def test_a_segmentation_bundle_says_what_it_is(built: Path) -> None:
    bundle = Bundle.load(built)
    assert bundle.recipe.task == "segmentation"
    (output,) = bundle.manifest.outputs
    assert (output.name, output.shape[1:]) == ("logits", (11, 64, 64))
    report = json.loads((built / "parity.json").read_text())["engines"]["onnxruntime"]
    assert (report["task"], report["invariance"]["metric"]) == ("segmentation", "EqE")
    assert report["labelled"]["score"] == "mIoU"
    assert "EqE" in (built / "parity.html").read_text()


def test_a_trace_names_the_place_or_nothing(built: Path) -> None:
    done = dec_export("parity", built, "--trace", "--samples", 4, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "First beyond the noise floor: nothing" in done.stdout
    assert "solve_1_image_4" in done.stdout


def test_a_page_never_lands_in_the_bundle(built: Path) -> None:
    done = dec_export("parity", built, "--html", built / "parity.html", "--force")
    assert done.returncode == 2
    assert "lies in the bundle" in done.stderr
    Bundle.load(built)


def test_a_task_must_fit_the_recipe(tmp_path: Path) -> None:
    for arguments, sentence in (
        (("--backbone", "beit_b", "--task", "segmentation"), "Unknown backbone 'beit_b_segmentation'"),
        (
            ("--backbone", "vit_s_segmentation", "--task", "classification"),
            "is for segmentation, not for classification",
        ),
        (("--backbone", "vit_s", "--task", "detection"), "'detection' is not one of"),
    ):
        done = dec_export("build", *arguments, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert sentence in done.stderr
