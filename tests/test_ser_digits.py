"""The losses of SER follow their definitions, views match their maps, and a resumed run ends like a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train_digits
from dec_export.data.digits import compose, source_digits
from dec_export.errors import DecExportError
from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.groups import ACTIONS, Similarity
from dec_export.reference.weights.checkpoint import load_reference
from digits_training.cost import Cost, measure_cost
from digits_training.losses import align, barlow_twins, cross_correlation, patch_nt_xent
from digits_training.map_errors import MapError, equivariance_errors, map_error
from digits_training.self_supervised import SerTrainer, train
from digits_training.self_supervised_plan import SerSettings, plan
from digits_training.self_supervised_results import Difference, difference, evaluate, tables, write
from digits_training.views import crops, geometric_views, photometric

SIDE, PATCH = 8, 8
SYMMETRIES = [Similarity(turns, mirrored) for turns in range(4) for mirrored in (False, True)]

RECIPE = Recipe(
    name="tiny_ser",
    backbone=BackboneRecipe(
        timm="vit_tiny_patch16_224",
        family="vit",
        image_size=64,
        num_classes=10,
        timm_args={"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2},
        cls_insert_layer=2,
    ),
    canonicalizer=None,
    augment_layer_id=(-100,),
    unaugment_layer_id=(-100,),
)


@pytest.fixture
def settings() -> SerSettings:
    return SerSettings(
        RECIPE,
        steps=3,
        batch=8,
        hidden=16,
        patch_hidden=8,
        save_every=2,
        validate_every=100,
        probe_images=60,
        validation_images=30,
        test_images=40,
        map_images=6,
    )


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- losses ----------------------------------------------------------------------------------------------------------


def nt_xent_by_hand(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Compute the loss patch by patch with Python's numbers."""
    views = [[[patch.tolist() for patch in image] for image in view] for view in (first, second)]

    def similarity(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) / temperature

    terms = []
    for view, other in (views, views[::-1]):
        for i, image in enumerate(view):
            for place, patch in enumerate(image):
                positive = math.exp(similarity(patch, other[i][place]))
                negatives = [
                    math.exp(similarity(patch, stranger))
                    for seen in views
                    for j, strangers in enumerate(seen)
                    if j != i
                    for stranger in strangers
                ]
                terms.append(-math.log(positive / (positive + math.fsum(negatives))))
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.1, 0.4, 1.0])
def test_the_equivariance_loss_is_that_of_its_definition(temperature: float) -> None:
    first, second = random(2, 3, 4, 5)
    found = patch_nt_xent(first, second, temperature).item()
    assert found == pytest.approx(nt_xent_by_hand(first, second, temperature), rel=1e-12)


def test_patches_of_the_same_image_are_no_negatives() -> None:
    first, second = random(2, 3, 4, 5)
    loss = patch_nt_xent(first, second, 0.4)
    # Each place's positives turn together in the last image: none of the cosines with other images may change.
    alike = first.clone()
    alike[0] = first[0, :1]
    same = patch_nt_xent(alike, alike, 0.4)
    one_patch = patch_nt_xent(alike[:, :1], alike[:, :1], 0.4)
    assert torch.isfinite(loss)
    # An image whose patches are all alike is contrasted with the others' alone, so its patches may stay alike.
    lone = torch.stack([torch.eye(5, dtype=torch.float64)[i].expand(4, 5) for i in range(2)])
    expected = math.log(1 + 2 * 4 * math.exp(-1 / 0.4))
    assert patch_nt_xent(lone, lone, 0.4).item() == pytest.approx(expected, rel=1e-12)
    assert same != one_patch


def test_the_equivariance_loss_is_least_where_places_agree() -> None:
    maps = random(4, 9, 64)
    right = patch_nt_xent(maps, maps, 0.4)
    shuffled = maps[:, torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    assert right < 0.5 * patch_nt_xent(maps, shuffled, 0.4)
    # Patches that are far from those of other images and equal to their partners feel next to no pull.
    far = torch.linalg.qr(random(8, 8))[0][:4, None].expand(4, 9, 8).contiguous()
    gradients = []
    for other in (far, far.roll(1, dims=0)):
        one = far.clone().requires_grad_()
        patch_nt_xent(one, other, 0.05).backward()
        gradients.append(one.grad.abs().max().item())
    assert gradients[0] < 1e-6 < 1e-3 < gradients[1]


def test_barlow_twins_is_zero_for_the_identity_alone() -> None:
    identity = torch.eye(6, dtype=torch.float64)
    assert barlow_twins(identity, 0.0051) == 0
    for changed in ((0, 0, 0.5), (1, 2, 0.1), (2, 1, -0.1)):
        matrix = identity.clone()
        matrix[changed[:2]] = changed[2]
        assert barlow_twins(matrix, 0.0051) > 0
    matrix = random(6, 6)
    by_hand = sum(
        (1 - matrix[i, j].item()) ** 2 if i == j else 0.0051 * matrix[i, j].item() ** 2
        for i in range(6)
        for j in range(6)
    )
    assert barlow_twins(matrix, 0.0051).item() == pytest.approx(by_hand, rel=1e-12)


def test_the_cross_correlation_is_numpys() -> None:
    first, second = random(2, 50, 4)
    expected = np.corrcoef(first.numpy(), second.numpy(), rowvar=False)[:4, 4:]
    np.testing.assert_allclose(cross_correlation(first, second).numpy(), expected, atol=1e-4)


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", SYMMETRIES, ids=str)
def test_maps_of_an_equivariant_layer_agree_in_one_frame(second: Similarity) -> None:
    images = random(len(SYMMETRIES), 3, SIDE * PATCH, SIDE * PATCH)
    elements = (SYMMETRIES, [second] * len(SYMMETRIES))
    views = [torch.stack([g.act(x) for g, x in zip(gs, images, strict=True)]) for gs in elements]
    one, other = (F.avg_pool2d(view, PATCH) for view in views)
    torch.testing.assert_close(align(one, elements, (SIDE, SIDE)), other, rtol=0, atol=1e-14)
    assert not torch.allclose(one, other)


def test_scaled_views_have_whole_patches_and_one_frame() -> None:
    # Maps that are linear in the place are resampled exactly, but next to the border.
    line = (torch.arange(64.0) + 0.5 - 32) / 32
    images = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64)])[None].repeat(6, 1, 1, 1)
    seen = set()
    for seed in range(12):
        views = geometric_views(images, SIDE, np.random.default_rng(seed))
        sizes = [view.shape[-1] for view in views.images]
        assert all(size % PATCH == 0 and 7 <= size // PATCH <= 9 for size in sizes)
        assert all(g.scale == size / 64 for gs, size in zip(views.elements, sizes, strict=True) for g in gs)
        assert all((f.turns, f.mirrored) != (s.turns, s.mirrored) for f, s in zip(*views.elements, strict=True))
        seen.add(tuple(sizes))
        one, other = (F.avg_pool2d(view, PATCH) for view in views.images)
        aligned = align(one, views.elements, tuple(other.shape[-2:]))
        inside = (..., slice(1, -1), slice(1, -1))
        torch.testing.assert_close(aligned[inside], other[inside], rtol=0, atol=2e-2)
    assert len(seen) > 4


def test_ordinary_views_keep_most_of_the_image_and_are_repeatable() -> None:
    images = torch.from_numpy(compose(source_digits("train"), 16, 0).pixels).float()[:, None] / 255
    one, again, other = (photometric(crops(images, g), g) for g in map(np.random.default_rng, (1, 1, 2)))
    assert one.shape == images.shape
    assert one.dtype == torch.float32
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert (one.flatten(1).corrcoef()[range(16), range(16)] > 0).all()
    # A line from left to right is still one, of at least sqrt(0.6 * 3 / 4) of its length.
    ramp = torch.linspace(0, 1, 64).expand(16, 1, 64, 64)
    width = crops(ramp, np.random.default_rng(3))
    assert (width[..., -1] - width[..., 0] > 0.6).all()


# --- training --------------------------------------------------------------------------------------------------------


def test_runs_see_the_same_images_and_ordinary_views(settings: SerSettings) -> None:
    plain, views, ser = (SerTrainer(run, settings) for run in plan(1.0, 0.25))
    everything, nothing = plain.batch()
    assert everything.shape == (16, 3, 64, 64)
    assert nothing is None
    batches = [trainer.batch() for trainer in (views, ser)]
    assert torch.equal(batches[0][0], batches[1][0])
    for kept, all_of_them in zip(batches[0][0].chunk(2), everything.chunk(2), strict=True):
        assert torch.equal(kept, all_of_them[:6])
    assert all(torch.equal(*pair) for pair in zip(batches[0][1].images, batches[1][1].images, strict=True))
    assert views.geometric == ser.geometric == len(batches[0][1].images[0]) == 2
    assert batches[0][0].shape == (12, 3, 64, 64)
    states = [trainer.learner.state_dict() for trainer in (plain, views, ser)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
        assert torch.equal(value, states[2][key]), key


def test_without_the_loss_no_gradient_comes_from_the_map(settings: SerSettings) -> None:
    _, views, ser = (SerTrainer(run, settings) for run in plan(1.0, 0.5))
    for trainer in (views, ser):
        trainer.advance()
    for name, parameter in views.learner.patch_projector.named_parameters():
        assert parameter.grad is None, name
    assert all(p.grad is not None for p in ser.learner.patch_projector.parameters())
    assert views.losses[0][0] == ser.losses[0][0]
    assert ser.losses[0][1] > 0 == views.losses[0][1]


@pytest.mark.parametrize("name", ["plain", "ser"])
def test_a_resumed_run_ends_with_the_same_weights(settings: SerSettings, name: str, tmp_path: Path) -> None:
    run = {run.name: run for run in plan(2.0, 0.25)}[name]
    whole = train(run, settings, tmp_path / "whole")
    (tmp_path / "halves").mkdir()
    interrupted = SerTrainer(run, settings)
    for _ in range(2):
        interrupted.advance()
    interrupted.note(None)
    interrupted.save(tmp_path / "halves")
    resumed = train(run, settings, tmp_path / "halves")
    assert resumed.step == whole.step == 3
    for key, value in whole.learner.state_dict().items():
        assert torch.equal(value, resumed.learner.state_dict()[key]), key
    losses = [[(e["step"], e["invariance_loss"], e["equivariance_loss"]) for e in t.log] for t in (whole, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch": 6}, {"temperature": 0.5}, {"steps": 4}])
def test_a_state_of_other_settings_is_refused(settings: SerSettings, changed, tmp_path: Path) -> None:
    run = plan(1.0, 0.25)[2]
    SerTrainer(run, settings).save(tmp_path)
    SerTrainer(run, settings).resume(tmp_path)
    with pytest.raises(DecExportError, match=r"run of other settings.*--work"):
        SerTrainer(run, replace(settings, **changed)).resume(tmp_path)
    with pytest.raises(DecExportError, match=r"run of other settings"):
        SerTrainer(replace(run, weight=2.0), settings).resume(tmp_path)


def test_a_recipe_without_a_late_class_token_is_refused(settings: SerSettings) -> None:
    early = RECIPE.model_copy(update={"backbone": RECIPE.backbone.model_copy(update={"cls_insert_layer": 0})})
    with pytest.raises(DecExportError, match="cls_insert_layer is 1 or more"):
        SerTrainer(plan(1.0, 0.25)[0], replace(settings, recipe=early))
    with pytest.raises(DecExportError, match="--share"):
        plan(1.0, 0.0)
    assert [run.name for run in plan(0.0, 0.25)] == ["plain"]


# --- what was learnt -------------------------------------------------------------------------------------------------


def test_the_error_of_equivariance_is_that_of_its_definition(settings: SerSettings) -> None:
    learner = SerTrainer(plan(1.0, 0.25)[0], settings).learner.double()
    inputs = random(3, 3, 64, 64)
    found = equivariance_errors(learner, inputs, batch=2)
    assert set(found) == set(ACTIONS)
    assert {len(blocks) for blocks in found.values()} == {3}
    for name, g in ACTIONS.items():
        maps, acted = (learner.embed(x)[1].detach() for x in (inputs, g.act(inputs)))
        covered = g.covers(SIDE, SIDE)
        change = (acted - g.act(maps))[..., covered].square().sum(dim=1).mean(dim=1).sqrt()
        norm = maps.square().sum(dim=1).mean(dim=(1, 2)).sqrt()
        assert found[name][1].error == pytest.approx((change / norm).mean().item(), abs=1e-4)
        assert found[name][1].centred > found[name][1].error > 0


def test_an_equivariant_map_has_no_error() -> None:
    maps = random(2, 3, SIDE, SIDE)
    for g in SYMMETRIES:
        measured = map_error(g, g.act(maps), maps)
        assert measured == MapError(error=0, centred=0, cosine=1)
    assert map_error(Similarity(1), maps, maps).error > 0.5


def test_the_difference_of_two_runs_has_the_error_of_its_groups() -> None:
    right, other = np.array([True] * 6 + [False] * 2), np.array([False] * 2 + [True] * 4 + [False] * 2)
    alone = difference(right, other, np.arange(8))
    gain = right.astype(float) - other
    assert alone == Difference(0.25, standard_error=round(float(gain.std(ddof=1) / 8**0.5), 4))
    # Two images of one source digit count once.
    assert difference(right, other, np.arange(8) // 2).standard_error > alone.standard_error


def test_what_is_written_is_what_the_product_reads(settings: SerSettings, tmp_path: Path) -> None:
    trainers = [train(run, settings, tmp_path / "work") for run in plan(1.0, 0.25)]
    costs = [measure_cost(settings, 0.25, 1.0, steps=2)]
    results = evaluate(trainers, costs)
    write(results, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "tiny_ser.json").read_text())
    assert report["cost"] == [asdict(costs[0])]
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"tiny_ser.json", "tiny_ser.safetensors", "baselines/tiny_ser_plain.safetensors"}
    assert costs[0].gflops_ratio > 1
    paths = (tmp_path / "out" / "baselines" / "tiny_ser_plain.safetensors", tmp_path / "out" / "tiny_ser.safetensors")
    images = compose(source_digits("test"), settings.test_images, 3)
    for trainer, path in zip((trainers[0], trainers[2]), paths, strict=True):
        model, source = load_reference(RECIPE, path)
        assert source.backbone == "checkpoint"
        inputs = torch.from_numpy(trainer.learner.inputs_of(images))
        with torch.no_grad():
            right = model(inputs).logits.argmax(dim=1).numpy() == images.labels
        assert right.mean() == pytest.approx(report["runs"][trainer.run.name]["test"]["accuracy"], abs=0.03)
    assert [table.row_count for table in tables(results)] == [4, 4]


# --- command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, settings: SerSettings) -> Callable[..., None]:
    """The command that trains, on tiny runs."""
    names = ("batch", "probe_images", "validation_images", "test_images", "map_images")
    sizes = {name: getattr(settings, name) for name in names}
    monkeypatch.setattr(train_digits, "SerSettings", partial(SerSettings, **sizes))
    cost = Cost(8, 2, 1, gflops=[1, 1], gflops_ratio=1, cpu_seconds=[1, 1], cpu_seconds_ratio=1)
    monkeypatch.setattr(train_digits, "measure_cost", lambda *_, **__: cost)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def call(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["train_digits.py", *map(str, arguments)])
        train_digits.main()

    return call


@pytest.mark.parametrize(("weight", "names"), [(2, ["plain", "views", "ser"]), (0, ["plain"])])
def test_the_command_makes_every_run(command, weight: float, names: list[str], tmp_path: Path) -> None:
    command("--ser", weight, "--share", 0.25, "--steps", 1, "--seed", 3, "--out", tmp_path, "--work", tmp_path / "work")
    report = json.loads((tmp_path / "digits_ser.json").read_text())
    assert list(report["runs"]) == names
    assert report["settings"]["seed"] == 3
    assert report["runs"][names[-1]]["weight"] == weight
    assert (tmp_path / "digits_ser.safetensors").exists() == (weight > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--ser", -1), "--ser takes a weight"), (("--ser", 1, "--recipe", "digits"), "cls_insert_layer is 1 or more")],
)
def test_what_cannot_be_trained_is_said_in_one_sentence(command, arguments, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        command(*arguments, "--out", tmp_path, "--work", tmp_path / "work")
