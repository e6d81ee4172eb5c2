"""Training the digit models: interrupted runs end where whole ones do, and the gradient reaches what it must."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dec_export.errors import DecExportError
from dec_export.recipe import BackboneRecipe, CanonicalizerRecipe, Recipe
from dec_export.reference.checkpoint import load_reference

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "scripts" / "train_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_digits"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


RECIPE = Recipe(
    name="tiny",
    backbone=BackboneRecipe(
        timm="test_vit",
        family="vit",
        image_size=64,
        num_classes=10,
        timm_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
    ),
    canonicalizer=CanonicalizerRecipe(
        coarse_resolution=(4, 4), channels=(3, 4, 4), kernel_sizes=(3, 3), pool_rates=(2, 2), image_size=16
    ),
)


@pytest.fixture
def settings(script: ModuleType):
    return script.Settings(RECIPE, batch=8, save_every=2, validate_every=100, test_images=20, images_per_scale=4)


@pytest.mark.parametrize("name", ["plain", "dec"])
def test_a_resumed_run_ends_with_the_same_weights(script: ModuleType, settings, name: str, tmp_path: Path) -> None:
    runs = {run.name: run for run in script.plan(2, 5)}
    for folder in ("whole", "halves"):
        script.train(runs["backbone"], settings, tmp_path / folder)
    whole = script.train(runs[name], settings, tmp_path / "whole")

    interrupted = script.create_trainer(runs[name], settings, tmp_path / "halves")
    for _ in range(3):
        interrupted.advance()
        if interrupted.step == 2:
            interrupted.note(None)
            interrupted.save(tmp_path / "halves" / f"{name}.pt")  # the third step is lost
    resumed = script.train(runs[name], settings, tmp_path / "halves")

    assert resumed.step == 5
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    losses = [[(e["step"], e["task_loss"]) for e in trainer.log] for trainer in (whole, resumed)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [2, 4, 5]


def test_a_state_of_other_settings_is_refused(script: ModuleType, settings, tmp_path: Path) -> None:
    script.train(script.plan(2, 5)[0], settings, tmp_path)
    with pytest.raises(DecExportError, match=r"run of other settings.*--work"):
        script.train(script.plan(3, 5)[0], settings, tmp_path)


def test_runs_start_from_the_backbone_and_train_what_they_say(script: ModuleType, settings, tmp_path: Path) -> None:
    runs = {run.name: run for run in script.plan(1, 2)}
    backbone = script.train(runs["backbone"], settings, tmp_path).model.state_dict()
    starts = {name: script.create_trainer(runs[name], settings, tmp_path).model for name in ("plain", "dec")}
    for model in starts.values():
        assert all(torch.equal(v, backbone[f"backbone.{k}"]) for k, v in model.backbone.state_dict().items())
    before = {name: dict(model.DEM.state_dict()) for name, model in starts.items()}
    after = {name: script.train(runs[name], settings, tmp_path).model.DEM.state_dict() for name in starts}
    assert all(torch.equal(before["plain"][key], after["plain"][key]) for key in before["plain"])
    for layer in range(2):
        key = f"module_list.{layer}.0.conv1.weight"
        assert not torch.equal(before["dec"][key], after["dec"][key])


def test_every_run_after_the_backbone_sees_equally_many_images(script: ModuleType, settings, tmp_path: Path) -> None:
    script.train(script.plan(1, 1)[0], settings, tmp_path)
    for run in script.plan(1, 1)[1:]:
        images, labels = script.create_trainer(run, settings, tmp_path)._batch()
        assert images.shape == (8, 3, 64, 64)
        if run.augment:
            assert torch.equal(labels[:4], labels[4:])
            assert not torch.equal(images[:4], images[4:])


def test_the_divergence_is_symmetric_and_that_of_its_definition(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 10, generator=generator, dtype=torch.float64)
    p, q = (torch.distributions.Categorical(logits=x) for x in (a, b))
    kl = torch.distributions.kl_divergence
    assert script.divergence(a, b).item() == pytest.approx(((kl(p, q) + kl(q, p)) / 2).mean().item(), rel=1e-12)
    assert script.divergence(a, b) == script.divergence(b, a)
    assert script.divergence(a, a + 3).item() == pytest.approx(0, abs=1e-12)


def test_what_is_written_is_what_the_product_reads(script: ModuleType, settings, tmp_path: Path) -> None:
    trainers = [script.train(run, settings, tmp_path / "work") for run in script.plan(1, 1)]
    report = script.write(trainers, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "digits.json").read_text()) == json.loads(json.dumps(report))
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    baselines = {f"baselines/digits_{name}.safetensors" for name in ("plain", "augmented", "consistent")}
    assert files == {"digits.json", "digits.safetensors", *baselines}
    model, source = load_reference(RECIPE, tmp_path / "out" / "digits.safetensors")
    assert source.backbone == source.canonicalizer == "checkpoint"
    trained = trainers[-1].model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    run = report["runs"]["dec"]
    for name in ("accuracy_at_scale", "accuracy_locally_scaled_at_scale"):
        assert set(run["test"][name]) == {str(scale) for scale in script.SCALES}
    assert run["parameters"] > report["runs"]["plain"]["parameters"]
    assert [table.row_count for table in script.tables(report)] == [len(trainers)] * 3
