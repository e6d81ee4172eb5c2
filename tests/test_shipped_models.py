"""The shipped checkpoints: small, loadable by the product, and as good as their report says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dec_export.digits import STRENGTH, compose, source_digits
from dec_export.parity.invariance import local_scale
from dec_export.recipe import Recipe
from dec_export.reference.checkpoint import load_reference
from dec_export.reference.model import DecModel, create_reference, preprocessing_of

MODELS = Path(__file__).parent.parent / "models"
BASELINES = ("plain", "augmented", "consistent")
EXTREMES = ("0.4", "2.0")


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((MODELS / "digits.json").read_text())


@pytest.fixture(scope="module")
def trained() -> DecModel:
    model, source = load_reference(Recipe.named("digits"), MODELS / "digits.safetensors")
    assert source.backbone == source.canonicalizer == "checkpoint"
    return model


def test_the_checkpoints_are_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*.safetensors")) < 8e6


@pytest.mark.parametrize("baseline", BASELINES)
def test_dec_beats_what_was_trained_without_it(baseline: str, report: dict) -> None:
    dec, other = (report["runs"][name]["test"] for name in ("dec", baseline))
    assert dec["inv_e"] < other["inv_e"]
    for scale in EXTREMES:
        name = "accuracy_locally_scaled_at_scale"
        assert dec[name][scale] > other[name][scale]
        # Undistorted digits of every scale are in the training data, and nothing is gained there: two standard
        # errors of a difference, 400 source digits, are 2.2 points.
        assert dec["accuracy_at_scale"][scale] > other["accuracy_at_scale"][scale] - 0.022


def test_every_run_was_trained_for_the_same_budget(report: dict) -> None:
    images = {run["images"] for name, run in report["runs"].items() if name != "backbone"}
    assert len(images) == 1
    for run in report["runs"].values():
        assert run["log"][-1]["step"] == run["steps"]


@pytest.mark.parametrize("name", ["dec", *BASELINES])
def test_a_checkpoint_does_what_its_report_says(name: str, report: dict, trained: DecModel) -> None:
    images = compose(source_digits("test"), 400, (7, 7))
    preprocessing = preprocessing_of(trained.recipe)
    inputs = images.inputs(preprocessing.mean, preprocessing.std)
    here, there = (probabilities(name, trained, x) for x in (inputs, local_scale(inputs, 8, STRENGTH)))
    expected = report["runs"][name]["test"]
    accuracy = (here.argmax(dim=1).numpy() == images.labels).mean()
    # Four standard errors: of a proportion, and of a mean of distances whose deviation is below 0.5.
    assert accuracy == pytest.approx(expected["accuracy"], abs=4 * np.sqrt(0.05 / 400))
    assert float((here - there).norm(dim=1).mean()) == pytest.approx(expected["inv_e"], abs=4 * 0.5 / np.sqrt(400))


@torch.no_grad()
def probabilities(name: str, trained: DecModel, inputs: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(inputs)
    if name == "dec":
        return trained(images).logits.softmax(dim=1)
    backbone = create_reference(trained.recipe).backbone
    backbone.load_state_dict(load_file(MODELS / "baselines" / f"digits_{name}.safetensors"))
    return backbone(images).softmax(dim=1)
