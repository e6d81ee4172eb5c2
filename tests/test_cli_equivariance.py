"""A user can ask for feature maps and their equivariance, also of a backbone alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from dec_export.bundle.store import Bundle
from dec_export.parity.measures.equivariance import ACTIONS
from dec_export.recipe.model import Recipe
from tests.helpers.commands import dec_export

TAP = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("equivariance") / "ser"
    build = ("build", "--backbone", "digits_ser", "--engine", "onnxruntime", "--threads", 1, "--samples", 4)
    done = dec_export(*build, "--tap", TAP, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"Equivariance of the map after block {TAP}, 4 images" in done.stdout
    assert "Equivariance of every block's map" in done.stdout
    return out


def test_a_bundle_shows_the_map_and_what_was_measured(built: Path) -> None:
    bundle = Bundle.load(built)
    assert bundle.tap == TAP
    width = bundle.recipe.backbone.timm_args["embed_dim"]
    assert [(output.name, output.shape[1:]) for output in bundle.manifest.outputs] == [
        ("logits", (10,)),
        (f"feature_map_{TAP}", (width, 8, 8)),
    ]
    report = json.loads((built / "parity.json").read_text())["engines"]["onnxruntime"]
    assert report["gate"] == "pass"
    assert f"feature_map_{TAP}" in report["outputs"]
    layers = report["equivariance"]["layers"]
    assert list(layers) == [str(place) for place in range(bundle.recipe.backbone.timm_args["depth"])]
    for by_action in layers.values():
        assert list(by_action) == list(ACTIONS)
        assert all(facts["deviation"] <= 0.01 for facts in by_action.values())


def test_the_page_has_the_curve_and_no_solver(built: Path) -> None:
    page = (built / "parity.html").read_text()
    assert "Equivariance error of the feature map of every block" in page
    assert f"Block or stage {TAP}, an output of the model" in page
    assert "This model has no canonicalizer" in page
    assert "Amplification of rounding" not in page


def test_layers_are_measured_of_any_bundle(small_bundle: Bundle, tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    options = ("--threads", 1, "--samples", 4, "--json")
    done = dec_export("parity", small_bundle.path, "--layers", "--html", html, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["equivariance"]
    assert found["tap"] is None
    assert len(found["layers"]) > 1
    assert len(re.findall("Equivariance of every block", html.read_text())) == 1
    done = dec_export("parity", small_bundle.path, *options)
    assert json.loads(done.stdout)["equivariance"] is None


def test_inspection_and_benchmark_know_a_backbone_alone(built: Path) -> None:
    done = dec_export("inspect", built, "--json")
    assert json.loads(done.stdout)["recipe"]["canonicalizer"] is None
    assert "none, a backbone alone" in dec_export("inspect", built).stdout
    done = dec_export("bench", built, "--batch", 1, "--rounds", 1, "--no-memory", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "DEC costs" not in done.stdout
    done = dec_export("bench", built, "--baseline", "optim", "--no-memory", "--rounds", 1)
    assert done.returncode == 2
    assert "has no canonicalizer to replace" in done.stderr


def test_a_backbone_alone_has_no_solver_in_its_graph(built: Path) -> None:
    proto = onnx.load(built / "model.onnx")
    assert not proto.functions
    assert not [node for node in proto.graph.node if "solve" in node.name or node.op_type == "GridSample"]
    assert Recipe.load(built / "recipe.yaml").canonicalizer is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tap", 5), "blocks or stages 0 to 4 of vit_tiny_patch16_224 for the feature map, found 5"),
        (("--tap", -1), "-1 is not in the range"),
        (("--solver", "plugin"), "has no canonicalizer, which --solver is for"),
        (("--solver-precision", "fp16"), "has no canonicalizer, which --solver-precision is for"),
        (("--expose-phi",), "has no canonicalizer, which --expose-phi is for"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(arguments: tuple, sentence: str, tmp_path: Path) -> None:
    done = dec_export("build", "--backbone", "digits_ser", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not any(tmp_path.iterdir())
