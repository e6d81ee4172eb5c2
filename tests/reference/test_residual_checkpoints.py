"""A residual network is read from the files of every program, original or of SER, and other networks are refused."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.families import InsertionRecipe
from dec_export.recipe.model import BackboneRecipe, HeadRecipe, Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights.backbones import classifier_keys
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.fitting import published_state_dict
from tests.conftest import SMALL_CANONICALIZER, randomised

State = dict[str, Tensor]
CLASSES, SIDE = 5, 64


def recipe_of(*, canonicalized: bool = False, timm: str = "test_resnet", **changes: Any) -> Recipe:
    backbone = BackboneRecipe(timm=timm, family="resnet", image_size=SIDE, num_classes=CLASSES)
    places = (-1, 0) if canonicalized else (-100,)
    canonicalizer = SMALL_CANONICALIZER if canonicalized else None
    fields = {"name": "small", "backbone": backbone, "canonicalizer": canonicalizer, "augment_layer_id": places}
    return Recipe(**{**fields, **changes})


def trained(recipe: Recipe) -> DecModel:
    """Return a model with other weights, and other statistics of batch norms, than the seeded ones."""
    model = randomised(create_reference(recipe))
    with torch.no_grad():
        for name, buffer in model.backbone.named_buffers():
            buffer.add_(3 if name.endswith("num_batches_tracked") else 0.25)
    return model


def backbone_of(model: DecModel) -> State:
    return {key: value for key, value in model.backbone.state_dict().items() if not key.startswith("fc.")}


def another(state: State) -> State:
    """Return other weights of the same shapes, which must not be loaded."""
    return {key: value + 1 for key, value in state.items()}


def below(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


# A projection head of two linear layers with a batch norm, whose last layer has the shape of a classifier or not.
PROJECTOR = {"0.weight": torch.ones(4, 6), "1.weight": torch.ones(4), "1.running_mean": torch.ones(4)}
# The layer that SER's ResNet-50 has in the place of a classifier and does not use.
UNUSED = {"head.weight": torch.full((CLASSES, 96), 7.0), "head.bias": torch.full((CLASSES,), 7.0)}


def ser(content: dict[str, Any]) -> dict[str, Any]:
    losses = {"loss_list_inv": np.array([0.5]), "loss_list_equiv": np.array([])}
    return {"epoch": 3, "args": Namespace(arch="resnet50", equiv_layer=3, equiv_mode="erl"), **content, **losses}


def moco_v3(state: State) -> dict[str, Any]:
    encoders = {**below("base_encoder.", state), **below("momentum_encoder.", another(state))}
    heads = below("base_encoder.fc.", PROJECTOR) | below("momentum_encoder.fc.", PROJECTOR)
    parts = {**encoders, **heads, **below("predictor.", PROJECTOR)}
    return {"epoch": 3, "arch": "resnet50", "state_dict": below("module.", parts)}


def dino(state: State) -> dict[str, Any]:
    """Networks with batch norms are distributed modules, teacher and student alike."""
    head = {"head.mlp.0.weight": torch.ones(2), "head.last_layer.weight_v": torch.ones(2)}
    student, teacher = (below("module.", {**below("backbone.", of), **head}) for of in (another(state), state))
    return {"student": student, "teacher": teacher, "args": Namespace(arch="resnet50"), "epoch": 3}


def barlow_twins(state: State) -> dict[str, Any]:
    parts = {**below("backbone.", state), **below("projector.", PROJECTOR), "bn.running_mean": torch.ones(2)}
    return {"epoch": 3, "model": below("module.", parts)}


def ser_moco(state: State) -> dict[str, Any]:
    return ser({"student": state, "teacher": another(state), "projector_equiv": {"0.weight": torch.ones(2)}})


def ser_dino(state: State) -> dict[str, Any]:
    content = dino(state)
    for network in ("student", "teacher"):
        content[network]["module.projector_equiv.0.weight"] = torch.ones(2)
    return ser({**content, "args": Namespace(equiv_layer=3)})


def ser_barlow_twins(state: State) -> dict[str, Any]:
    return ser({"model": {**state, **UNUSED}, "projector_inv": {"0.weight": torch.ones(2)}, "projector_equiv": None})


TENSORS = len(backbone_of(create_reference(recipe_of())))
# By name: the file, its layout in words, and what is dropped.
PROGRAMS: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "MoCo v3": (moco_v3, "MoCo v3", f"momentum_encoder.* ({TENSORS + 3}), predictor.* (3), fc.* (3)"),
    "DINO": (dino, "DINO, its teacher", f"head.* (2), student.* ({TENSORS + 2})"),
    "Barlow Twins": (barlow_twins, "Barlow Twins", "projector.* (3), bn.* (1)"),
    "the published backbone of DINO or Barlow Twins": (dict, "a state dict", ""),
    "the same with a wrapper": (lambda state: {"model": below("module.", state)}, "a state dict", ""),
    "SER's MoCo v3": (
        ser_moco,
        "MoCo v3 of SER, its student",
        f"teacher.* ({TENSORS}), projector_equiv.* (1)",
    ),
    "SER's DINO": (
        ser_dino,
        "DINO of SER, its teacher",
        f"head.* (2), projector_equiv.* (1), student.* ({TENSORS + 3})",
    ),
    "SER's Barlow Twins": (ser_barlow_twins, "Barlow Twins of SER", "projector_inv.* (1), head.* (2)"),
}


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "net.pth")
    return folder / "net.pth"


def refused(content: Any, recipe: Recipe, folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_reference(recipe, saved(content, folder))
    return str(raised.value)


def assert_same_backbone(model: DecModel, source: DecModel) -> None:
    found = model.backbone.state_dict()
    assert all(torch.equal(found[key], value) for key, value in backbone_of(source).items())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_gives_back_its_backbone(program: str, tmp_path: Path) -> None:
    wrap, words, dropped = PROGRAMS[program]
    source = trained(recipe_of())
    path = saved(wrap(backbone_of(source)), tmp_path)
    model, origin = load_reference(recipe_of(), path, seed=3)
    assert_same_backbone(model, source)
    seeded = create_reference(recipe_of(), 3).backbone.state_dict()
    assert all(torch.equal(model.backbone.state_dict()[key], seeded[key]) for key in ("fc.weight", "fc.bias"))
    assert origin.detail == (
        f"The backbone's weights come from net.pth ({words}); the linear head is random, seed 3"
        f"{'; dropped: ' + dropped if dropped else ''}."
    )
    assert (origin.backbone, origin.canonicalizer, origin.seed) == ("checkpoint", "none", 3)
    with pytest.raises(CheckpointError, match="does not hold the linear head, and --strict-weights allows no random"):
        load_reference(recipe_of(), path, strict=True)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=2, unique=True),
    program=st.sampled_from(sorted(PROGRAMS)),
)
def test_wrappers_around_every_part_change_nothing(prefixes: list[str], program: str, tmp_path: Path) -> None:
    source = trained(recipe_of())
    content = PROGRAMS[program][0](backbone_of(source))
    # strip_prefixes takes the prefix of a distributed module off before that of a compiled one.
    for prefix in sorted(prefixes):
        content = {key: _wrapped(prefix, part) for key, part in content.items()}
    model, _ = load_reference(recipe_of(), saved(content, tmp_path))
    assert_same_backbone(model, source)


def _wrapped(prefix: str, part: Any) -> Any:
    is_state = isinstance(part, dict) and not any(key.startswith("module.") for key in part)
    return below(prefix, part) if is_state else part


@pytest.mark.parametrize("program", ["MoCo v3", "SER's Barlow Twins"])
def test_dec_goes_on_top_with_random_canonicalizers(program: str, tmp_path: Path) -> None:
    source, recipe = trained(recipe_of()), recipe_of(canonicalized=True)
    model, origin = load_reference(recipe, saved(PROGRAMS[program][0](backbone_of(source)), tmp_path), seed=3)
    assert_same_backbone(model, source)
    seeded = create_reference(recipe, 3)
    assert all(torch.equal(v, seeded.DEM.state_dict()[k]) for k, v in model.DEM.state_dict().items())
    assert "; the canonicalizers and the linear head are random, seed 3;" in origin.detail


@pytest.mark.parametrize("canonicalized", [False, True])
def test_the_linear_evaluation_brings_its_classifier(canonicalized: bool, tmp_path: Path) -> None:
    source = trained(recipe_of())
    state = published_state_dict(source)
    classifier = {"linear.weight": state["fc.weight"], "linear.bias": state["fc.bias"]}
    content = {"epoch": 3, "state_dict": classifier, "encoder": backbone_of(source)}
    recipe = recipe_of(canonicalized=canonicalized)
    model, origin = load_reference(recipe, saved(content, tmp_path), strict=not canonicalized)
    assert all(torch.equal(v, source.backbone.state_dict()[k]) for k, v in model.backbone.state_dict().items())
    assert "(linear evaluation of SER)" in origin.detail
    assert origin.detail.startswith("The backbone's weights" if canonicalized else "All weights")


def test_a_head_of_segmentation_takes_no_classifier(tmp_path: Path) -> None:
    source, places = trained(recipe_of()), {"augment_layer_id": (-100,), "unaugment_layer_id": (-100,)}
    recipe = recipe_of(task="segmentation", head=HeadRecipe(kind="linear"), **places)
    content = {"epoch": 3, "encoder": backbone_of(source), "state_dict": {"linear.weight": torch.ones(5, 96)}}
    content["state_dict"]["linear.bias"] = torch.ones(5)
    model, origin = load_reference(recipe, saved(content, tmp_path), seed=3)
    assert_same_backbone(model, source)
    assert "; the head is random, seed 3; dropped: fc.* (2)." in origin.detail


def test_a_whole_network_is_loaded_as_such(tmp_path: Path) -> None:
    """MoCo v3's own linear evaluation stores its network with the classifier."""
    source = trained(recipe_of())
    content = {"epoch": 3, "state_dict": below("module.", published_state_dict(source))}
    model, origin = load_reference(recipe_of(), saved(content, tmp_path), strict=True)
    assert origin.detail == "All weights come from net.pth."
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_bare_backbone_is_none_of_a_dec_model(tmp_path: Path) -> None:
    state = backbone_of(trained(recipe_of()))
    assert "it has no canonicalizer (no key starts with 'DEM.')" in refused(
        state, recipe_of(canonicalized=True), tmp_path
    )


def test_a_dec_model_with_a_prefix_is_no_file_of_barlow_twins(tmp_path: Path) -> None:
    """Its canonicalizers would be dropped as if they were a projector."""
    recipe = recipe_of(canonicalized=True)
    message = refused(trained(recipe).state_dict(), recipe, tmp_path)
    assert "does not fit recipe 'small'" in message


def test_another_network_is_named(tmp_path: Path) -> None:
    state = backbone_of(trained(recipe_of()))
    vit = {"cls_token": torch.ones(1, 1, 4), "pos_embed": torch.ones(1, 5, 4), "blocks.0.norm1.weight": torch.ones(4)}
    message = refused(moco_v3(vit), recipe_of(), tmp_path)
    assert "(MoCo v3) holds no residual network: expected keys such as 'layer1.0.conv1.weight', found " in message
    deep = {**state, "layer3.1.conv1.weight": torch.ones(2)}
    message = refused(ser_barlow_twins(deep), recipe_of(), tmp_path)
    assert "(Barlow Twins of SER) has stages of 1, 1, 2, 1 blocks, expected the 1, 1, 1, 1 of test_resnet: " in message
    lacking = {key: value for key, value in state.items() if key != "bn1.running_var"}
    assert "'bn1.running_var' 32 is missing" in refused(dino(lacking), recipe_of(), tmp_path)
    wide = {**state, "bn1.weight": torch.ones(3)}
    assert "'bn1.weight' is 3, expected 32" in refused(barlow_twins(wide), recipe_of(), tmp_path)
    nan = {**state, "bn1.weight": state["bn1.weight"] * torch.nan}
    assert "holds NaN, or infinity in torch.float32, in 'bn1.weight'" in refused(dino(nan), recipe_of(), tmp_path)


def test_a_late_class_token_takes_no_residual_network(tmp_path: Path) -> None:
    backbone = BackboneRecipe(
        timm="vit_tiny_patch16_224",
        family="vit",
        image_size=32,
        num_classes=CLASSES,
        timm_args={"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
        cls_insert_layer=1,
    )
    recipe = Recipe(name="late", backbone=backbone, canonicalizer=None, augment_layer_id=(-100,))
    message = refused(backbone_of(trained(recipe_of())), recipe, tmp_path)
    assert "(a state dict) holds no vision transformer: expected keys such as 'blocks.0.attn.qkv.weight', " in message


def test_a_family_without_checks_of_its_own_is_loaded_by_its_names(tmp_path: Path) -> None:
    insertion = InsertionRecipe(stages="stages", embedding="stem", layout="channels_first")
    backbone = BackboneRecipe(
        timm="test_convnext", family="custom", image_size=SIDE, num_classes=CLASSES, insertion=insertion
    )
    recipe = Recipe(name="custom", backbone=backbone, canonicalizer=None, augment_layer_id=(-100,))
    source = trained(recipe)
    assert classifier_keys(source.backbone) == ["head.fc.weight", "head.fc.bias"]
    state = {key: value for key, value in source.backbone.state_dict().items() if not key.startswith("head.fc.")}
    content = {"teacher": below("backbone.", state), "student": below("backbone.", another(state))}
    # The norm before the classifier is the backbone's own, although its name is that of a projection head.
    model, origin = load_reference(recipe, saved(content, tmp_path), seed=3)
    found = model.backbone.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert "(DINO, its teacher); the linear head is random, seed 3; dropped: student.*" in origin.detail
    other = {"teacher": {"backbone.trunk.weight": torch.ones(2)}, "epoch": 3}
    assert "holds no state dict" in refused(other, recipe, tmp_path)
