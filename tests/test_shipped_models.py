"""The shipped checkpoints are small, can be loaded, and reach the scores of their report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dec_export.data.digits import CLASSES, STRENGTH, compose, source_digits
from dec_export.parity.measures.invariance import equivariance_error, local_scale, local_scale_phi
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference, predict, preprocessing_of
from dec_export.reference.warp import warp_labels
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.tasks.measures import mean_iou

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
    sizes = {path.stem: path.stat().st_size for path in MODELS.rglob("*.safetensors")}
    of_ser = [name for name in sizes if name.startswith("digits_ser")]
    assert sum(sizes.pop(name) for name in of_ser) < 2.5e6
    assert sum(sizes.values()) < 8e6


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


# --- segmentation ----------------------------------------------------------------------------------------------------

SEGMENTATION = "digits_segmentation"
SEGMENTATION_BASELINES = ("plain", "consistent")
# Four standard deviations among sets of 200 images, which were measured on the backbone.
TOLERANCE = {"mean_iou": 0.025, "mean_iou_locally_scaled": 0.06, "eq_e": 0.02}


@pytest.fixture(scope="module")
def segmentation_report() -> dict:
    return json.loads((MODELS / f"{SEGMENTATION}.json").read_text())


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    """Return the results of each shipped segmentation model on the same few test images."""
    return {name: measure_segmentation(name) for name in ("dec", *SEGMENTATION_BASELINES)}


@torch.no_grad()
def measure_segmentation(name: str, count: int = 200) -> dict[str, float]:
    if name == "dec":
        model, source = load_reference(Recipe.named(SEGMENTATION), MODELS / f"{SEGMENTATION}.safetensors")
        assert source.backbone == source.canonicalizer == "checkpoint"
    else:
        model = segmentation_baseline(name)
    images = compose(source_digits("test"), count, (7, 8))
    preprocessing = preprocessing_of(model.recipe)
    inputs = images.inputs(preprocessing.mean, preprocessing.std)
    phi = local_scale_phi(count, 9, STRENGTH)
    masks = torch.from_numpy(images.masks)
    here, there = (segment(model, x, name == "dec") for x in (inputs, local_scale(inputs, 9, STRENGTH)))
    return {
        "mean_iou": mean_iou(here.argmax(axis=1), masks.numpy(), CLASSES + 1),
        "mean_iou_locally_scaled": mean_iou(there.argmax(axis=1), warp_labels(phi, masks).numpy(), CLASSES + 1),
        "eq_e": equivariance_error(here, there, phi),
    }


def segmentation_baseline(name: str) -> DecModel:
    model = create_reference(Recipe.named(SEGMENTATION))
    weights = load_file(MODELS / "baselines" / f"{SEGMENTATION}_{name}.safetensors")
    keys = {key if key.startswith("decoder.") else f"backbone.{key}": value for key, value in weights.items()}
    missing, unexpected = model.load_state_dict(keys, strict=False)
    assert not unexpected
    assert all(key.startswith("DEM.") for key in missing)
    return model


def segment(model: DecModel, inputs: np.ndarray, canonicalize: bool) -> np.ndarray:
    images = torch.from_numpy(inputs)
    phis = model.DEM(images) if canonicalize else []
    return predict(model.recipe, model.backbone, model.decoder, images, phis).numpy()


@pytest.mark.parametrize("name", ["dec", *SEGMENTATION_BASELINES])
def test_a_segmentation_checkpoint_does_what_its_report_says(
    name: str, segmentation_report: dict, measured: dict
) -> None:
    expected = segmentation_report["runs"][name]["test"]
    for key in ("mean_iou", "mean_iou_locally_scaled", "eq_e"):
        assert measured[name][key] == pytest.approx(expected[key], abs=TOLERANCE[key]), key


@pytest.mark.parametrize("key", ["eq_e", "mean_iou_locally_scaled"])
def test_segmentation_with_dec_beats_its_backbone(key: str, segmentation_report: dict, measured: dict) -> None:
    reported = {name: run["test"] for name, run in segmentation_report["runs"].items()}
    better = -1 if key == "eq_e" else 1
    for numbers in (reported, measured):
        assert better * (numbers["dec"][key] - numbers["plain"][key]) > 0


def test_every_segmentation_run_was_trained_for_the_same_budget(segmentation_report: dict) -> None:
    runs = segmentation_report["runs"]
    assert len({run["images"] for name, run in runs.items() if name != "backbone"}) == 1
    assert all(run["log"][-1]["step"] == run["steps"] for run in runs.values())
