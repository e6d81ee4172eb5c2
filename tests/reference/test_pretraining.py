"""Checkpoints of self-supervised training are read in each program's layout, and unsuitable ones are refused."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe, HeadRecipe, Recipe
from dec_export.reference.backbones.late_class_token import sincos2d
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights import checkpoint, layouts
from dec_export.reference.weights import hub as hub_module
from dec_export.reference.weights.checkpoint import load_reference, read_weights
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from dec_export.reference.weights.layout import Checkpoint, Layout, any_below
from dec_export.reference.weights.layout import below as below_prefix
from dec_export.reference.weights.layouts import read_checkpoint
from dec_export.reference.weights.transformer import position_tolerance
from tests.conftest import SMALL_CANONICALIZER, randomised

State = dict[str, Tensor]
WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 32, 4, 2, 8, 4, 5
PATCHES = SIDE * SIDE


def recipe_of(insert_at: int | None = 2, *, canonicalized: bool = False, **changes: Any) -> Recipe:
    """Return the recipe of a ViT with four blocks of width 32, for images of 32 pixels with 4 x 4 patches."""
    backbone = BackboneRecipe(
        timm="vit_tiny_patch16_224",
        family="vit",
        image_size=PATCH * SIDE,
        num_classes=CLASSES,
        timm_args={"depth": DEPTH, "embed_dim": WIDTH, "num_heads": HEADS, "patch_size": PATCH},
        cls_insert_layer=insert_at,
    ).model_copy(update=changes)
    return Recipe(
        name="small",
        backbone=backbone,
        canonicalizer=SMALL_CANONICALIZER if canonicalized else None,
        augment_layer_id=(-1, 0) if canonicalized else (-100,),
    )


def trained(recipe: Recipe, seed: int = 7) -> DecModel:
    """Stands in for a trained model: SER's adds no position to its class token, and MoCo v3's positions are fixed."""
    model = randomised(create_reference(recipe), seed)
    positions = model.backbone.pos_embed
    with torch.no_grad():
        if recipe.backbone.position_embedding == "sincos2d":
            positions.copy_(sincos2d((SIDE, SIDE), WIDTH))
        elif recipe.backbone.cls_insert_layer:
            positions[:, :1] = 0
    return model


def backbone_of(model: DecModel, *, head: bool = False) -> State:
    state = model.backbone.state_dict()
    return {key: value.clone() for key, value in state.items() if head or not key.startswith("head.")}


def another(state: State) -> State:
    """Return other weights of the same shapes, which must not be loaded."""
    return {key: value + 1 for key, value in state.items()}


def below(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def projector() -> nn.Sequential:
    """Return a projection head of MoCo v3, with 6 tensors of batch norms and 2 of linear layers."""
    return nn.Sequential(
        nn.Linear(WIDTH, 6, bias=False), nn.SyncBatchNorm(6), nn.ReLU(inplace=True), nn.Linear(6, 4, bias=False)
    )


def arguments(**changes: Any) -> Namespace:
    """Return the arguments of a command line in the form that these programs store."""
    found = {"arch": "vit_small", "lr": 0.1, "checkpoint_dir": Path("checkpoint"), "crops": (0.7, 1.3), "seed": None}
    return Namespace(**{**found, "interpolation": InterpolationMode.BILINEAR, **changes})


def losses() -> dict[str, Any]:
    return {"loss_list_inv": np.array([0.5, 0.25]), "loss_list_equiv": np.array([]), "best": np.float64(0.1)}


def ser(state: State, *, baseline: bool = False) -> State:
    """Return a backbone of SER, without a row for a late class token, with a normalisation that only the loss needs."""
    if baseline:
        return state
    extra = {"norm_equiv.weight": torch.ones(WIDTH), "norm_equiv.bias": torch.zeros(WIDTH)}
    return {**state, "pos_embed": state["pos_embed"][:, 1:].clone(), **extra}


def ser_arguments(equiv_layer: int = 2) -> Namespace:
    return arguments(equiv_layer=equiv_layer, equiv_mode="inv" if equiv_layer == 12 else "erl")


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def moco_v3(state: State) -> dict[str, Any]:
    head = below("head.", projector().state_dict())
    encoders = {**below("base_encoder.", {**state, **head}), **below("momentum_encoder.", another(state))}
    parts = {**encoders, **below("predictor.", projector().state_dict())}
    return {"epoch": 3, "arch": "vit_small", "state_dict": below("module.", parts), "optimizer": OPTIMIZER}


def dino(state: State) -> dict[str, Any]:
    head = {"head.mlp.0.weight": torch.ones(2), "head.last_layer.weight_v": torch.ones(2)}
    student = below("module.", {**below("backbone.", another(state)), **head})
    teacher = {**below("backbone.", state), **head}
    center = {"center": torch.zeros(1, 4)}
    return {"student": student, "teacher": teacher, "args": arguments(), "epoch": 3, "dino_loss": center}


def barlow_twins(state: State) -> dict[str, Any]:
    parts = {**below("backbone.", state), "projector.0.weight": torch.ones(2), "bn.running_mean": torch.ones(2)}
    return {"epoch": 3, "model": below("module.", parts), "optimizer": OPTIMIZER}


def ser_moco(state: State, equiv_layer: int = 2) -> dict[str, Any]:
    """Beside the weights, SER stores the projection heads as whole modules."""
    heads = {"student_head": projector(), "teacher_head": projector(), "projector_equiv": {"0.weight": torch.ones(2)}}
    encoder = ser(state, baseline=equiv_layer == 12)
    encoders = {"student": encoder, "teacher": another(encoder)}
    return {"epoch": 3, "args": ser_arguments(equiv_layer), **encoders, **heads, "optimizer": OPTIMIZER, **losses()}


def ser_dino(state: State) -> dict[str, Any]:
    extra = {"projector_equiv.0.weight": torch.ones(2), "head.mlp.0.weight": torch.ones(2)}
    student = below("module.", {**below("backbone.", another(ser(state))), **extra})
    teacher = {**below("backbone.", ser(state)), **extra}
    return {"student": student, "teacher": teacher, "args": ser_arguments(), **losses()}


def ser_barlow_twins(state: State) -> dict[str, Any]:
    parts = {"projector_inv": {"0.weight": torch.ones(2)}, "projector_equiv": None, "scaler": {"scale": 2.0}}
    return {"epoch": 3, "args": ser_arguments(), "model": ser(state), **parts, "optimizer": OPTIMIZER, **losses()}


# By name: the block that the class token joins before, the file, its layout in words, and what is dropped.
TENSORS = 4 + 12 * DEPTH + 2  # of the backbone, without a head
LAYOUTS: dict[str, tuple[int, Callable[[State], Any], str, str]] = {
    "MoCo v3": (0, moco_v3, "MoCo v3", f"momentum_encoder.* ({TENSORS}), predictor.* (7), head.* (7)"),
    "DINO": (0, dino, "DINO, its teacher", f"head.* (2), student.* ({TENSORS + 2})"),
    "DINO's backbone": (0, dict, "a state dict", ""),
    "Barlow Twins": (0, barlow_twins, "Barlow Twins", "projector.* (1), bn.* (1)"),
    "SER's MoCo v3": (
        2,
        ser_moco,
        "MoCo v3 of SER, its student",
        f"teacher.* ({TENSORS + 2}), projector_equiv.* (1), norm_equiv.* (2)",
    ),
    "SER's baseline": (
        0,
        lambda state: ser_moco(state, 12),
        "MoCo v3 of SER, its student",
        f"teacher.* ({TENSORS}), projector_equiv.* (1)",
    ),
    "SER's DINO": (
        2,
        ser_dino,
        "DINO of SER, its teacher",
        f"projector_equiv.* (1), head.* (1), student.* ({TENSORS + 4}), norm_equiv.* (2)",
    ),
    "SER's Barlow Twins": (2, ser_barlow_twins, "Barlow Twins of SER", "projector_inv.* (1), norm_equiv.* (2)"),
}


def saved(content: Any, folder: Path, name: str = "moco.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def images() -> Tensor:
    size = PATCH * SIDE
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model: DecModel) -> Tensor:
    found: Tensor = model.double().backbone.forward_features(images())
    return found


@torch.no_grad()
def logits(model: DecModel) -> Tensor:
    found: Tensor = model.double()(images()).logits
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("canonicalized", [False, True], ids=["backbone alone", "with canonicalizers"])
def test_every_layout_gives_back_its_backbone(layout: str, canonicalized: bool, tmp_path: Path) -> None:
    insert_at, wrap, words, dropped = LAYOUTS[layout]
    recipe = recipe_of(insert_at, canonicalized=canonicalized)
    source = trained(recipe)
    path = saved(wrap(backbone_of(source)), tmp_path)
    model, origin = load_reference(recipe, path, seed=3)
    seeded = create_reference(recipe, 3)
    assert torch.equal(model.backbone.head.weight, seeded.backbone.head.weight)
    assert all(torch.equal(v, seeded.DEM.state_dict()[k]) for k, v in model.DEM.state_dict().items())
    assert torch.equal(features(model), features(source))
    lacking = "the canonicalizers and the linear head are" if canonicalized else "the linear head is"
    assert origin.detail == (
        f"The backbone's weights come from moco.pth ({words}); {lacking} random, seed 3"
        f"{'; dropped: ' + dropped if dropped else ''}."
    )
    assert (origin.backbone, origin.canonicalizer) == ("checkpoint", "random" if canonicalized else "none")
    assert (origin.seed, origin.file) == (3, "moco.pth")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strict_refuses_what_is_random(layout: str, tmp_path: Path) -> None:
    insert_at, wrap, words, _ = LAYOUTS[layout]
    path = saved(wrap(backbone_of(trained(recipe_of(insert_at)))), tmp_path)
    with pytest.raises(CheckpointError) as raised:
        load_reference(recipe_of(insert_at), path, strict=True)
    assert f"({words}) does not hold the linear head, and --strict-weights allows no random" in str(raised.value)
    with pytest.raises(CheckpointError, match="does not hold the canonicalizers and the linear head, and"):
        load_reference(recipe_of(insert_at, canonicalized=True), path, strict=True)


def linear(state: State, name: str, tokens: Tensor) -> Tensor:
    return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normalised(state: State, name: str, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def block(state: State, i: int, tokens: Tensor) -> Tensor:
    name, (batch, count, _) = f"blocks.{i}", tokens.shape
    qkv = linear(state, f"{name}.attn.qkv", normalised(state, f"{name}.norm1", tokens))
    q, k, v = qkv.reshape(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
    mixed = (attention @ v).transpose(1, 2).reshape(batch, count, WIDTH)
    tokens = tokens + linear(state, f"{name}.attn.proj", mixed)
    hidden = F.gelu(linear(state, f"{name}.mlp.fc1", normalised(state, f"{name}.norm2", tokens)))
    return tokens + linear(state, f"{name}.mlp.fc2", hidden)


def ser_forward(stored: State, insert_at: int) -> list[Tensor]:
    """SER's transformer written out, from the weights that its file holds: what every block puts out, normalised."""
    state = {key: value.double() for key, value in stored.items()}
    embedding = F.conv2d(images(), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    tokens = embedding.flatten(2).transpose(1, 2) + state["pos_embed"]
    found = []
    for i in range(DEPTH):
        if i == insert_at:
            tokens = torch.cat([state["cls_token"].expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = block(state, i, tokens)
        found.append(normalised(state, "norm", tokens))
    return found


@pytest.mark.parametrize("insert_at", [1, 2, 3])
def test_a_late_class_token_computes_what_ser_does(insert_at: int, tmp_path: Path) -> None:
    content = ser_moco(backbone_of(trained(recipe_of(insert_at))), insert_at)
    model, _ = load_reference(recipe_of(insert_at), saved(content, tmp_path))
    truth = ser_forward(content["student"], insert_at)[-1]
    torch.testing.assert_close(features(model), truth, rtol=1e-12, atol=1e-12)


def linear_evaluation(recipe: Recipe) -> tuple[dict[str, Any], DecModel]:
    source = trained(recipe)
    state = backbone_of(source, head=True)
    classifier = {"linear.weight": state.pop("head.weight"), "linear.bias": state.pop("head.bias")}
    return {"epoch": 3, "state_dict": classifier, "encoder": ser(state), "optimizer": OPTIMIZER}, source


def test_the_linear_evaluation_of_ser_is_a_whole_model(tmp_path: Path) -> None:
    recipe = recipe_of(2, last_blocks=2)
    content, source = linear_evaluation(recipe)
    model, origin = load_reference(recipe, saved(content, tmp_path), strict=True)
    assert torch.equal(logits(model), logits(source))
    last = torch.cat([tokens[:, 0] for tokens in ser_forward(content["encoder"], 2)[-2:]], dim=1)
    classifier = {key: value.double() for key, value in content["state_dict"].items()}
    torch.testing.assert_close(logits(model), linear(classifier, "linear", last), rtol=1e-12, atol=1e-12)
    assert (origin.backbone, origin.canonicalizer, origin.seed) == ("checkpoint", "none", None)
    assert origin.detail == (
        "All weights come from moco.pth (linear evaluation of SER, which does not say which block its class token "
        "joins before: the recipe is believed); dropped: norm_equiv.* (2)."
    )


def test_the_linear_evaluation_of_ser_leaves_the_canonicalizers_random(tmp_path: Path) -> None:
    content, source = linear_evaluation(recipe_of(2, last_blocks=2))
    model, origin = load_reference(recipe_of(2, last_blocks=2, canonicalized=True), saved(content, tmp_path), seed=4)
    assert torch.equal(model.backbone.head.weight, source.backbone.head.weight)
    assert "; the canonicalizers are random, seed 4; dropped:" in origin.detail
    assert (origin.canonicalizer, origin.seed) == ("random", 4)


def test_the_linear_evaluation_of_a_baseline_has_an_early_class_token(tmp_path: Path) -> None:
    content, source = linear_evaluation(recipe_of(0, last_blocks=2))
    content["encoder"] = backbone_of(source)
    model, origin = load_reference(recipe_of(0, last_blocks=2), saved(content, tmp_path), strict=True)
    assert torch.equal(logits(model), logits(source))
    assert origin.detail == "All weights come from moco.pth (linear evaluation of SER)."
    assert "joining before the first block (" in refused(content, recipe_of(2, last_blocks=2), tmp_path)


def test_weights_that_ship_are_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, path = recipe_of(2), tmp_path / "small.safetensors"
    source = trained(recipe)
    save_file(published_state_dict(source), path)
    monkeypatch.setattr(checkpoint, "_shipped_checkpoint", lambda _: path)
    model, origin = load_reference(recipe, strict=True)
    assert torch.equal(logits(model), logits(source))
    assert origin.detail == "All weights come from small.safetensors, which ships with dec-export."
    assert (origin.canonicalizer, origin.seed) == ("none", None)
    save_file(backbone_of(source), path)
    with pytest.raises(CheckpointError, match="is missing"):
        load_reference(recipe)


def test_an_encoder_beside_a_whole_model_is_left(tmp_path: Path) -> None:
    source = trained(recipe_of(2))
    content = {"encoder": {"weight": torch.ones(2)}, "state_dict": published_state_dict(source)}
    model, _ = load_reference(recipe_of(2), saved(content, tmp_path), strict=True)
    assert torch.equal(logits(model), logits(source))


def test_a_segmentation_model_takes_the_backbone_alone(tmp_path: Path) -> None:
    source = trained(recipe_of(2))
    recipe = recipe_of(2).model_copy(update={"task": "segmentation", "head": HeadRecipe(kind="linear")})
    path = saved(backbone_of(source, head=True), tmp_path)
    _, origin = load_reference(recipe_of(2), path, strict=True)
    believed = "a state dict, which does not say which block its class token joins before: the recipe is believed"
    assert origin.detail == f"All weights come from moco.pth ({believed})."
    content = {"state_dict": backbone_of(source, head=True), "args": ser_arguments()}
    model, origin = load_reference(recipe, saved(content, tmp_path), seed=3)
    assert torch.equal(features(model), features(source))
    assert origin.detail == (
        "The backbone's weights come from moco.pth (a state dict); the head is random, seed 3; dropped: head.* (2)."
    )
    with pytest.raises(CheckpointError, match="does not hold the head, and"):
        load_reference(recipe, path, strict=True)


@pytest.mark.parametrize("insert_at", [0, 2, None], ids=["early", "late", "timm's own"])
def test_a_whole_state_dict_loads_strictly(insert_at: int | None, tmp_path: Path) -> None:
    """The state dict is that of MoCo v3's linear evaluation, and that of a bundle."""
    recipe = recipe_of(insert_at)
    source = randomised(create_reference(recipe))
    state = published_state_dict(source)
    path = saved({"epoch": 3, "arch": "vit", "state_dict": below("module.", state)}, tmp_path)
    save_file(state, tmp_path / "weights.safetensors")
    for file in (path, tmp_path / "weights.safetensors"):
        model, origin = load_reference(recipe, file, strict=True)
        assert torch.equal(logits(model), logits(source))
        assert (origin.backbone, origin.canonicalizer, origin.seed) == ("checkpoint", "none", None)
        assert "All weights come from" in origin.detail
        assert "dropped" not in origin.detail
        assert ("does not say which block" in origin.detail) == (insert_at == 2)


def test_a_bundles_weights_stay_exact(tmp_path: Path) -> None:
    """What a bundle reads back goes past the layouts of training: nothing may lack, and nothing be left over."""
    recipe, path = recipe_of(2), tmp_path / "weights.safetensors"
    state = published_state_dict(trained(recipe))
    changes: dict[str, tuple[State, str]] = {
        "less": ({k: v for k, v in state.items() if k != "head.bias"}, "'head.bias' 5 is missing"),
        "more": ({**state, "norm_equiv.bias": torch.zeros(WIDTH)}, "'norm_equiv.bias' 32 is not expected"),
        "no row": ({**state, "pos_embed": state["pos_embed"][:, 1:].clone()}, "'pos_embed' is 1x16x32, expected"),
    }
    for changed, message in changes.values():
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            load_weights(create_reference(recipe), read_weights(path), path)


def test_a_whole_dec_model_loads_as_ever(tmp_path: Path) -> None:
    recipe = recipe_of(2, canonicalized=True)
    source = trained(recipe)
    state = published_state_dict(source)
    model, origin = load_reference(recipe, saved({"state_dict": state}, tmp_path), strict=True)
    assert all(torch.equal(v, state[k]) for k, v in published_state_dict(model).items())
    assert (origin.canonicalizer, origin.detail) == ("checkpoint", "All weights come from moco.pth.")
    del state["head.bias"]
    with pytest.raises(CheckpointError, match=r"'head\.bias' 5 is missing"):
        load_reference(recipe, saved(state, tmp_path))


@pytest.mark.parametrize("canonicalized", [False, True])
@pytest.mark.parametrize("layout", ["MoCo v3", "DINO", "Barlow Twins", "SER's baseline"])
def test_timm_s_own_transformer_takes_a_training_checkpoint(layout: str, canonicalized: bool, tmp_path: Path) -> None:
    _, wrap, words, dropped = LAYOUTS[layout]
    source = trained(recipe_of(0))
    path = saved(wrap(backbone_of(source)), tmp_path)
    model, origin = load_reference(recipe_of(None, canonicalized=canonicalized), path, seed=3)
    assert torch.equal(features(model), features(source))
    lacking = "the canonicalizers and the linear head are" if canonicalized else "the linear head is"
    assert origin.detail == (
        f"The backbone's weights come from moco.pth ({words}); {lacking} random, seed 3; dropped: {dropped}."
    )


def test_timm_s_own_transformer_takes_no_late_class_token(tmp_path: Path) -> None:
    state = backbone_of(trained(recipe_of(2)))
    message = refused(ser_moco(state), recipe_of(None), tmp_path)
    assert "joining before block 2, expected the first block: set cls_insert_layer to 2" in message
    message = refused({**ser_moco(state), "args": None}, recipe_of(None), tmp_path)
    assert "'pos_embed' is 1x16x32, expected 1x17x32" in message


def test_a_bare_backbone_of_a_transformer_is_compared_by_its_names(tmp_path: Path) -> None:
    path = saved(backbone_of(trained(recipe_of(0))), tmp_path)
    with pytest.raises(CheckpointError, match="it has no canonicalizer"):
        load_reference(recipe_of(None, canonicalized=True), path)
    with pytest.raises(CheckpointError, match="is missing"):
        load_reference(recipe_of(None), path)


def test_half_of_a_classifier_is_an_error(tmp_path: Path) -> None:
    state = backbone_of(trained(recipe_of(0)), head=True)
    del state["head.bias"]
    with pytest.raises(CheckpointError, match=r"'head\.bias' 5 is missing"):
        load_reference(recipe_of(0), saved(dino(state), tmp_path))


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    state = {**backbone_of(trained(recipe_of(0))), "blocks.0.ls1.gamma": torch.ones(WIDTH)}
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.ls1\.gamma' 32 is not expected"):
        load_reference(recipe_of(0), saved(moco_v3(state), tmp_path))


# --- where the class token joins, and its position ------------------------------------------------------


def refused(content: Any, recipe: Recipe, folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_reference(recipe, saved(content, folder))
    return str(raised.value)


def test_the_place_that_the_arguments_say_decides(tmp_path: Path) -> None:
    state = backbone_of(trained(recipe_of(2)))
    message = refused(ser_moco(state), recipe_of(3), tmp_path)
    assert "joining before block 2 (as equiv_layer in its arguments says), expected before block 3: " in message
    assert "set cls_insert_layer to 2" in message
    message = refused(ser_moco(state, 12), recipe_of(2), tmp_path)
    assert "joining before the first block (as equiv_layer in its arguments says), expected before block 2" in message
    assert "set cls_insert_layer to 0" in message
    # A class token that joins late may have a position of its own.
    content = {**ser_moco(state), "student": state}
    model, _ = load_reference(recipe_of(2), saved(content, tmp_path))
    assert torch.equal(model.backbone.pos_embed, state["pos_embed"])
    # Arguments are whatever a file says they are.
    for odd in (True, "2", None, 2.0, -3, 13, 10**600):
        content["args"] = {"equiv_layer": odd}
        message = refused(content, recipe_of(2), tmp_path)
        assert "joining before the first block (its pos_embed has a row for it, as that of SER has" in message


@pytest.mark.parametrize("layout", ["MoCo v3", "DINO", "Barlow Twins", "DINO's backbone"])
def test_a_late_class_token_with_a_position_of_its_own_loads_from_every_layout(layout: str, tmp_path: Path) -> None:
    source = trained(recipe_of(2))
    with torch.no_grad():
        source.backbone.pos_embed[:, :1] = 0.5
    model, origin = load_reference(recipe_of(2), saved(LAYOUTS[layout][1](backbone_of(source)), tmp_path))
    assert torch.equal(features(model), features(source))
    assert "which does not say which block its class token joins before: the recipe is believed)" in origin.detail


def test_a_backbone_that_does_not_say_its_block_is_taken_at_the_recipes_word(tmp_path: Path) -> None:
    content = ser_moco(backbone_of(trained(recipe_of(2))))
    del content["args"]
    for insert_at in (1, 2):
        _, origin = load_reference(recipe_of(insert_at), saved(content, tmp_path))
        assert (
            "(MoCo v3 of SER, its student, which does not say which block its class token joins before: "
            "the recipe is believed); " in origin.detail
        )


@pytest.mark.parametrize("said", [{}, {"args": Namespace(equiv_layer=12)}], ids=["unsaid", "said"])
def test_no_row_for_an_early_class_token(said: dict[str, Any], tmp_path: Path) -> None:
    content = {"model": ser(backbone_of(trained(recipe_of(2)))), **said}
    message = refused(content, recipe_of(0), tmp_path)
    assert "has a pos_embed of 16 rows, one for each patch, expected 17 for a class token at the first block" in message


@pytest.mark.parametrize(
    ("rows", "words", "advice"),
    [
        (18, "as for 2 tokens before a grid of 4 x 4 patches", "one class token and no others"),
        (10, "as for a grid of 3 x 3 patches", "set image_size, and patch_size"),
        (25, "as for a grid of 5 x 5 patches", "set image_size, and patch_size"),
        (14, "as for no square grid of patches", "one class token and no others"),
    ],
)
@pytest.mark.parametrize("insert_at", [0, 2])
def test_other_rows_name_both_grids(rows: int, words: str, advice: str, insert_at: int, tmp_path: Path) -> None:
    state = {**backbone_of(trained(recipe_of(insert_at))), "pos_embed": torch.zeros(1, rows, WIDTH)}
    message = refused({**ser_moco(state), "student": state, "args": None}, recipe_of(insert_at), tmp_path)
    assert f"a pos_embed of {rows} rows, {words}, expected 17 for a grid of 4 x 4 patches and one class" in message
    assert advice in message


FIXED = {"position_embedding": "sincos2d"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("insert_at", [0, 2])
def test_fixed_positions_may_be_rounded(dtype: torch.dtype, insert_at: int, tmp_path: Path) -> None:
    recipe = recipe_of(insert_at, **FIXED)
    source = trained(recipe)
    state = {key: value.to(dtype) for key, value in backbone_of(source).items()}
    content = moco_v3(state) if insert_at == 0 else ser_moco(state)
    model, _ = load_reference(recipe, saved(content, tmp_path))
    assert torch.equal(model.backbone.pos_embed, sincos2d((SIDE, SIDE), WIDTH).to(dtype).float())


def test_fixed_positions_computed_in_float32_are_near_enough() -> None:
    """The positions have the size of the published models and are computed as in MoCo v3."""
    side, quarter = 14, 96
    frequencies = 1.0 / (10000.0 ** (torch.arange(quarter, dtype=torch.float32) / quarter))
    angles = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    fixed = sincos2d((side, side), 4 * quarter)[0, 1:].reshape(side, side, 4, quarter)
    off = max((fixed[0, :, 2] - angles.sin()).abs().max().item(), (fixed[:, 0, 1] - angles.cos()).abs().max().item())
    assert 0 < off < position_tolerance(torch.float32, side) < 1e-4


@pytest.mark.parametrize("off", [1e-3, -1e-3])
def test_positions_that_are_not_the_fixed_ones_are_refused(off: float, tmp_path: Path) -> None:
    state = backbone_of(trained(recipe_of(0, **FIXED)))
    state["pos_embed"][0, 5, 3] += off
    message = refused(moco_v3(state), recipe_of(0, **FIXED), tmp_path)
    assert "has a pos_embed up to 0.001 off the fixed embedding sincos2d, expected 3.9e-06 at most" in message
    state["pos_embed"] = sincos2d((SIDE, SIDE), WIDTH).float().roll(-1, dims=1)
    message = refused(moco_v3(state), recipe_of(0, **FIXED), tmp_path)
    assert "has the class token's row of pos_embed last, expected first: it was not written by" in message
    # Learned positions may be anything.
    load_reference(recipe_of(0), saved(moco_v3(state), tmp_path))


def test_another_transformer_is_named(tmp_path: Path) -> None:
    state, recipe = backbone_of(trained(recipe_of(0))), recipe_of(0)
    resnet = {"base_encoder.conv1.weight": torch.ones(2), "base_encoder.fc.0.weight": torch.ones(2)}
    message = refused({"state_dict": below("module.", resnet)}, recipe, tmp_path)
    assert "(MoCo v3) holds no vision transformer" in message
    assert "found conv1.weight, fc.0.weight; give the checkpoint of the backbone." in message
    classifier = {"state_dict": {"module.linear.weight": torch.ones(2, 2)}}
    assert "holds no vision transformer" in refused(classifier, recipe, tmp_path)
    for key in ("cls_token", "pos_embed"):
        lacking = {k: v for k, v in state.items() if k != key}
        assert f"(MoCo v3) has no {key}, expected a transformer with" in refused(moco_v3(lacking), recipe, tmp_path)
    shallow = {k: v for k, v in state.items() if not k.startswith("blocks.1.")}
    message = refused(moco_v3(shallow), recipe, tmp_path)
    assert "has 3 blocks, without block 1, expected the 4 of vit_tiny_patch16_224: " in message
    deep = {**state, "blocks.11.norm1.weight": torch.ones(WIDTH)}
    assert "has 5 blocks, expected the 4 of" in refused(moco_v3(deep), recipe, tmp_path)
    wide = {**state, "pos_embed": torch.zeros(1, 17, 48), "cls_token": torch.zeros(1, 1, 48)}
    assert "has tokens of width 48, expected the 32 of vit_tiny_p" in refused(moco_v3(wide), recipe, tmp_path)
    flat = {**state, "pos_embed": torch.zeros(17, WIDTH)}
    assert "has a pos_embed of 17x32, expected 1xTOKENSx32" in refused(moco_v3(flat), recipe, tmp_path)


ODD_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "complex": lambda t: t.to(torch.complex64),
    "whole numbers": lambda t: t.to(torch.int32),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_positions_that_are_no_plain_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    state = ser(backbone_of(trained(recipe_of(2))))
    state["pos_embed"] = ODD_TENSORS[kind](state["pos_embed"])
    content = {"student": state, "args": ser_arguments()}
    for recipe in (recipe_of(2), recipe_of(2, **FIXED)):
        assert "holds 'pos_embed' as" in refused(content, recipe, tmp_path)


# --- what a file may hold beside weights ----------------------------------------------------------------


class _Malicious:
    """An object that creates a folder when a reader that executes pickles reads it."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.flag),)


def _hooked(evil: object) -> nn.Module:
    module = nn.Linear(2, 2)
    module.__dict__["evil"] = evil
    return module


HIDING_PLACES: dict[str, Callable[[object], dict[str, Any]]] = {
    "an argument": lambda evil: {"args": ser_arguments_with(evil)},
    "an array of objects": lambda evil: {"loss_list_inv": np.array([evil], dtype=object)},
    "a module": lambda evil: {"student_head": nn.Sequential(_hooked(evil))},
    "an entry": lambda evil: {"evil": evil},
}


def ser_arguments_with(evil: object) -> Namespace:
    found = ser_arguments()
    found.interpolation = evil
    return found


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_code_among_the_entries_is_not_executed(place: str, tmp_path: Path) -> None:
    flag = tmp_path / "executed"
    content = {**ser_moco(backbone_of(trained(recipe_of(2)))), **HIDING_PLACES[place](_Malicious(flag))}
    assert "it was refused, nothing in it was executed" in refused(content, recipe_of(2), tmp_path)
    assert not flag.exists()


def test_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    assert "holds no state dict" in refused({"student": {}, "args": arguments()}, recipe_of(0), tmp_path)
    assert "holds no state dict" in refused({}, recipe_of(0), tmp_path)
    for content in (5, torch.zeros(3), "weights"):
        assert "holds no state dict" in refused(content, recipe_of(2), tmp_path)
    # The published program writes lists of start values beside its checkpoints, and nothing for models without phi.
    for content in (None, [torch.zeros(3)]):
        assert "'..._phi_x.pth'" in refused(content, recipe_of(2), tmp_path)


def test_a_block_of_a_number_that_no_model_has_is_a_key_like_another(tmp_path: Path) -> None:
    state = {**backbone_of(trained(recipe_of(0))), f"blocks.{'9' * 5000}.norm1.weight": torch.ones(WIDTH)}
    assert "is not expected" in refused(state, recipe_of(0), tmp_path)


def test_a_hundred_thousand_unused_keys_take_no_time(tmp_path: Path) -> None:
    """A search for each key in a list of all keys would take minutes."""
    state = {**backbone_of(trained(recipe_of(0))), **{f"norm_equiv.{i}": torch.ones(()) for i in range(100_000)}}
    found = read_checkpoint(Checkpoint(state, tmp_path))
    assert found.dropped == Counter({"norm_equiv": 100_000})


def test_recognising_leaves_the_content_alone() -> None:
    content = ser_moco(backbone_of(trained(recipe_of(2))))
    keys = list(content["student"])
    for _ in range(2):
        found = read_checkpoint(Checkpoint(content, Path("x")))
        assert found.dropped == Counter({"teacher": TENSORS + 2, "projector_equiv": 1, "norm_equiv": 2})
    assert list(content["student"]) == keys


# --- timm's pretrained weights --------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Let timm return this model, in place of the hub, when it is asked for pretrained weights."""
    torch.manual_seed(123)
    pretrained, create = timm.create_model("vit_tiny_patch16_224"), timm.create_model
    monkeypatch.setattr(hub_module, "_hub_answers", lambda: True)
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained=False, **k: stand_in if pretrained else create(*a, **k)
    )
    stand_in = pretrained
    return pretrained


TINY = {
    "timm": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "image_size": 224,
    "num_classes": 1000,
    "timm_args": {},
}


@pytest.mark.parametrize(
    ("insert_at", "changes", "reason"),
    [
        (1, {}, "have their class token from the first block"),
        (1, {"last_blocks": 2}, "have their class token from the first block"),
        (0, {"last_blocks": 2}, "have no head that reads 2 blocks"),
        (0, FIXED, "have learned positions"),
    ],
)
def test_pretrained_weights_of_another_computation_are_left(
    insert_at: int, changes: dict[str, Any], reason: str, hub: nn.Module
) -> None:
    recipe = recipe_of(insert_at, **{**TINY, **changes})
    model, source = load_reference(recipe, seed=2)
    assert source.detail == (f"All weights are random, seed 2: timm's pretrained weights of {TINY['timm']} {reason}.")
    assert (source.backbone, source.canonicalizer, source.seed) == ("random", "none", 2)
    seeded = create_reference(recipe, 2).state_dict()
    assert all(torch.equal(value, seeded[key]) for key, value in model.state_dict().items())


def test_pretrained_weights_fit_an_early_class_token(hub: nn.Module) -> None:
    model, source = load_reference(recipe_of(0, **TINY))
    assert all(torch.equal(value, hub.state_dict()[key]) for key, value in model.backbone.state_dict().items())
    assert (source.backbone, source.canonicalizer, source.seed) == ("pretrained", "none", None)
    assert source.detail == "The backbone has timm's pretrained weights."
    _, source = load_reference(recipe_of(0, canonicalized=True, **TINY), seed=2)
    assert source.detail == "The backbone has timm's pretrained weights; the canonicalizers are random, seed 2."


def test_the_shipped_recipe_says_why_its_weights_are_random() -> None:
    _, source = load_reference(Recipe.named("ser_vit_s"))
    assert source.detail == (
        "All weights are random, seed 0: timm's pretrained weights of vit_small_patch16_224.dino have their class "
        "token from the first block."
    )


# --- the registry of layouts ----------------------------------------------------------------------------


def test_a_file_of_no_known_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    message = refused({"model": {"encoder.layers.0.weight": torch.ones(2)}}, recipe_of(0), tmp_path)
    assert "found encoder.layers.0.weight; expected one of" in message
    assert all(layout.marks in message for layout in layouts.LAYOUTS)
    assert message.endswith("Give the checkpoint of the backbone.")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_layout_that_recognises_a_file_says_its_name(layout: str) -> None:
    insert_at, wrap, words, _ = LAYOUTS[layout]
    checkpoint = Checkpoint(wrap(backbone_of(trained(recipe_of(insert_at)))), Path("x"))
    first = next(known for known in layouts.LAYOUTS if known.recognises(checkpoint))
    assert first.read(checkpoint).layout == words


def test_a_layout_is_known_once_it_stands_in_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = trained(recipe_of(0))
    content = {"net": below("trunk.", backbone_of(source))}
    assert "holds no state dict" in refused(content, recipe_of(0), tmp_path)
    added = Layout(
        "'net' with keys that start with 'trunk.'",
        lambda checkpoint: any_below("trunk.", checkpoint.part("net")),
        lambda checkpoint: below_prefix("trunk.", checkpoint.part("net"), "another program"),
    )
    monkeypatch.setattr(layouts, "LAYOUTS", (added, *layouts.LAYOUTS))
    model, origin = load_reference(recipe_of(0), saved(content, tmp_path))
    assert torch.equal(features(model), features(source))
    assert "come from moco.pth (another program); the linear head is random" in origin.detail
