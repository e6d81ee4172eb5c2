"""A resumed training of the digit models ends like a whole one, and each run trains its own part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dec_export.errors import DecExportError
from dec_export.parity.measures.invariance import local_scale_phi
from dec_export.parity.measures.labelled import SCALES
from dec_export.recipe.model import BackboneRecipe, CanonicalizerRecipe, HeadRecipe, Recipe
from dec_export.reference.warp import warp, warp_labels
from dec_export.reference.weights.checkpoint import load_reference
from digits_training.supervised import Run, Settings, create_trainer, plan, train, without_canonicalizers
from digits_training.supervised_results import evaluate, tables, write
from digits_training.supervised_tasks import TASKS, divergence

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


SEGMENTATION = RECIPE.model_copy(
    update={
        "name": "tiny_segmentation",
        "task": "segmentation",
        "backbone": RECIPE.backbone.model_copy(update={"num_classes": 11}),
        "head": HeadRecipe(kind="dpt", taps=(0, 1), width=4),
        "augment_layer_id": (0, 1),
        "unaugment_layer_id": (0, 1),
    }
)
TASK = TASKS["classification"]
SIZES = {"batch": 8, "save_every": 2, "validate_every": 100, "test_images": 20, "images_per_scale": 4}


@pytest.fixture(params=[RECIPE, SEGMENTATION], ids=lambda recipe: recipe.task)
def settings(request: pytest.FixtureRequest) -> Settings:
    return Settings(request.param, **SIZES)


def plan_of(settings: Settings, backbone_steps: int, steps: int) -> tuple[Run, ...]:
    return plan(backbone_steps, steps, TASKS[settings.recipe.task])


@pytest.mark.parametrize("name", ["plain", "dec"])
def test_a_resumed_run_ends_with_the_same_weights(settings: Settings, name: str, tmp_path: Path) -> None:
    runs = {run.name: run for run in plan_of(settings, 2, 5)}
    for folder in ("whole", "halves"):
        train(runs["backbone"], settings, tmp_path / folder)
    whole = train(runs[name], settings, tmp_path / "whole")

    interrupted = create_trainer(runs[name], settings, tmp_path / "halves")
    for _ in range(3):
        interrupted.advance()
        if interrupted.step == 2:
            interrupted.note(None)
            interrupted.save(tmp_path / "halves")  # the third step is lost
    resumed = train(runs[name], settings, tmp_path / "halves")

    assert resumed.step == 5
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    losses = [[(e["step"], e["task_loss"]) for e in trainer.log] for trainer in (whole, resumed)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [2, 4, 5]


def test_a_state_of_other_settings_is_refused(settings: Settings, tmp_path: Path) -> None:
    train(plan(2, 5, TASK)[0], settings, tmp_path)
    with pytest.raises(DecExportError, match=r"run of other settings.*--work"):
        train(plan(3, 5, TASK)[0], settings, tmp_path)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch": 4}])
def test_a_state_of_another_seed_or_batch_is_refused(settings: Settings, changed, tmp_path: Path) -> None:
    run = plan(1, 5, TASK)[0]
    train(run, settings, tmp_path)
    with pytest.raises(DecExportError, match=r"run of other settings.*--work"):
        train(run, replace(settings, **changed), tmp_path)


def test_a_state_that_does_not_name_its_seed_is_resumed(settings: Settings, tmp_path: Path) -> None:
    run = plan(1, 5, TASK)[0]
    train(run, settings, tmp_path)
    state = torch.load(tmp_path / "backbone.pt", weights_only=True)
    torch.save({key: value for key, value in state.items() if key not in ("seed", "batch")}, tmp_path / "backbone.pt")
    trainer = create_trainer(run, settings, tmp_path)
    trainer.resume(tmp_path)
    assert trainer.step == 1


def test_runs_start_from_the_backbone_and_train_what_they_say(settings: Settings, tmp_path: Path) -> None:
    runs = {run.name: run for run in plan_of(settings, 1, 2)}
    backbone = train(runs["backbone"], settings, tmp_path).model.state_dict()
    starts = {name: create_trainer(runs[name], settings, tmp_path).model for name in ("plain", "dec")}
    for model in starts.values():
        rest = without_canonicalizers(model.state_dict())
        assert all(torch.equal(value, backbone[key]) for key, value in rest.items())
    before = {name: {key: v.clone() for key, v in model.state_dict().items()} for name, model in starts.items()}
    after = {name: train(runs[name], settings, tmp_path).model.state_dict() for name in starts}
    for key, value in before["plain"].items():
        assert torch.equal(value, after["plain"][key]) or not key.startswith("DEM.")
    changed = [
        "DEM.module_list.0.0.conv1.weight",
        "DEM.module_list.1.0.conv1.weight",
        "backbone.patch_embed.proj.weight",
    ]
    for key in [*changed, *(["decoder.head.3.weight"] if settings.recipe.head else [])]:
        assert not torch.equal(before["dec"][key], after["dec"][key]), key


def test_every_run_after_the_backbone_sees_equally_many_images(settings: Settings, tmp_path: Path) -> None:
    first, *others = plan_of(settings, 1, 1)
    train(first, settings, tmp_path)
    for run in others:
        images, labels, phi = create_trainer(run, settings, tmp_path).batch()
        assert images.shape == (8, 3, 64, 64)
        assert labels.shape == ((8,) if settings.recipe.head is None else (8, 64, 64))
        assert run.augment == (phi is not None)
        if phi is not None:
            torch.testing.assert_close(images[4:], warp(phi, images[:4].double()).float(), rtol=0, atol=0)
            expected = labels[:4] if settings.recipe.head is None else warp_labels(phi, labels[:4])
            assert torch.equal(labels[4:], expected)


def test_the_equivariance_loss_of_masks_is_small_where_the_logits_are_warped() -> None:
    task, phi = TASKS["segmentation"], local_scale_phi(2, 1, 0.25)
    logits = torch.randn(2, 11, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = warp(phi, logits.double()).float()
    # Squares of float32's rounding, and of its coordinates.
    assert 0 <= task.equivariance_loss(phi, logits, scaled) < 1e-9 < 1e-2 < task.equivariance_loss(phi, logits, logits)


def test_the_divergence_is_symmetric_and_that_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 10, generator=generator, dtype=torch.float64)
    p, q = (torch.distributions.Categorical(logits=x) for x in (a, b))
    kl = torch.distributions.kl_divergence
    assert divergence(a, b).item() == pytest.approx(((kl(p, q) + kl(q, p)) / 2).mean().item(), rel=1e-12)
    assert divergence(a, b) == divergence(b, a)
    assert divergence(a, a + 3).item() == pytest.approx(0, abs=1e-12)


def test_what_is_written_is_what_the_product_reads(settings: Settings, tmp_path: Path) -> None:
    runs, name = plan_of(settings, 1, 1), settings.recipe.name
    trainers = [train(run, settings, tmp_path / "work") for run in runs]
    runs_tested = [evaluate(trainer) for trainer in trainers]
    write(runs_tested, tmp_path / "out")
    report = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    baselines = {f"baselines/{name}_{run.name}.safetensors" for run in runs if run.name not in ("backbone", "dec")}
    assert files == {f"{name}.json", f"{name}.safetensors", *baselines}
    model, source = load_reference(settings.recipe, tmp_path / "out" / f"{name}.safetensors")
    assert source.backbone == source.canonicalizer == "checkpoint"
    trained = trainers[-1].model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    run, score = report["runs"]["dec"], trainers[-1].task.score_key
    for key in (f"{score}_at_scale", f"{score}_locally_scaled_at_scale"):
        assert set(run["test"][key]) == {str(scale) for scale in SCALES}
    assert run["parameters"] > report["runs"]["plain"]["parameters"]
    assert [table.row_count for table in tables(runs_tested)] == [len(trainers)] * 3
