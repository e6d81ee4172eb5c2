"""The reference is compared with numbers of SER's published implementation, for each of its two architectures.

`data/published_ser.json` holds what the public code of arXiv 2603.06693 computes in float64 for weights and an image
that are formulas: the ResNet-50 and the transformer `vit_small` with four blocks, `equiv_layer` 2 and images of 64
pixels. `map` is every so many channels of the map that SER's loss acts on, before its projector. `logits` are those of
the linear evaluation with seven classes; for the transformer, with `n_last_blocks` 1 and `avgpool_patchtokens`.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from dec_export.data.images import ImageSet
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.engines.torch import TorchEngine
from dec_export.errors import CheckpointError
from dec_export.formats import Format
from dec_export.forms import Forms
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import export
from dec_export.parity.measures.equivariance import Equivariance
from dec_export.parity.references import run_references
from dec_export.parity.run import run_parity
from dec_export.parity.runs import ReferenceOptions
from dec_export.recipe.model import BackboneRecipe, CanonicalizerRecipe, Recipe
from dec_export.reference.backbones.maps import tapped_map
from dec_export.reference.model import DecModel, create_reference, in_precision
from dec_export.reference.trace import trace
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from dec_export.reference.weights.hub import load_pretrained
from tests.conftest import SMALL_CANONICALIZER, photographs, randomised
from tests.helpers.models import SIZE, WIDTH, formula_weights, late_token_recipe
from tests.reference.test_published import formula_image

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_ser.json").read_text())["cases"]
CLASSES, IMAGE = 7, 64
State = dict[str, Tensor]


def formula_state(state: State) -> State:
    """Return formula weights for these keys; a variance is around one, and counts are zero."""
    weights = formula_weights({key: tuple(value.shape) for key, value in state.items() if value.is_floating_point()})
    moved = {key: value + 1 if key.endswith("running_var") else value for key, value in weights.items()}
    return {key: moved.get(key, torch.zeros_like(value)) for key, value in state.items()}


def linear_evaluation(encoder: State, inputs: int) -> dict[str, Any]:
    """Return a file of SER's linear evaluation, with formula weights for these keys and a classifier of `inputs`."""
    shapes = {"linear.weight": (CLASSES, inputs), "linear.bias": (CLASSES,)}
    return {"epoch": 3, "encoder": formula_state(encoder), "state_dict": formula_weights(shapes)}


def without(prefix: str, model: DecModel) -> State:
    return {key: value for key, value in published_state_dict(model).items() if not key.startswith(prefix)}


def image_set(images: NDArray[np.float32]) -> ImageSet:
    return ImageSet(tuple(map(str, range(len(images)))), images, "photographs")


def assert_published(case: str, logits: Tensor, shown: Tensor, every: int) -> None:
    for name, found in (("logits", logits), ("map", shown[0, ::every])):
        truth = np.array(PUBLISHED[case][name])
        assert np.linalg.norm(found.numpy().ravel() - truth) <= 1e-12 * np.linalg.norm(truth), name


def tapped(model: DecModel, image: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Return the logits, and the map that a tap of the block or stage shows."""
    with torch.inference_mode():
        traced = trace(model, image)
        features = traced.features[place]
        return traced.output.logits, tapped_map(model.recipe.backbone, model.backbone, place, features, image.dtype)


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "ser.pth")
    return folder / "ser.pth"


def test_resnet_50_gives_the_published_numbers(tmp_path: Path) -> None:
    backbone = BackboneRecipe(timm="resnet50", family="resnet", image_size=IMAGE, num_classes=CLASSES)
    recipe = Recipe(name="ser", backbone=backbone, canonicalizer=None, augment_layer_id=(-100,))
    content = linear_evaluation(without("fc.", create_reference(recipe)), 2048)
    model, origin = load_reference(recipe, saved(content, tmp_path), strict=True)
    assert origin.detail == "All weights come from ser.pth (linear evaluation of SER)."
    # The weights are rounded to float32 by their file's model, so the published float64 ones are set again.
    exact = {"fc.weight": content["state_dict"]["linear.weight"], "fc.bias": content["state_dict"]["linear.bias"]}
    load_weights(model.double(), {**content["encoder"], **exact}, tmp_path)
    logits, shown = tapped(model, formula_image(IMAGE), 2)
    assert_published("resnet50", logits, shown, 256)


def small_vit(**changes: Any) -> Recipe:
    backbone = BackboneRecipe(
        timm="vit_small_patch16_224",
        family="vit",
        image_size=IMAGE,
        num_classes=CLASSES,
        timm_args={"depth": 4},
        cls_insert_layer=2,
        **changes,
    )
    return Recipe(name="ser", backbone=backbone, canonicalizer=None, augment_layer_id=(-100,))


def test_the_transformer_gives_the_published_numbers(tmp_path: Path) -> None:
    recipe = small_vit(avgpool_patchtokens=True, tap_norm=True)
    model = create_reference(recipe)
    state = without("head.", model)
    content = linear_evaluation({**state, "pos_embed": state["pos_embed"][:, 1:]}, 2 * 384)
    encoder = content["encoder"]
    _, origin = load_reference(recipe, saved(content, tmp_path), strict=True)
    assert "; dropped:" not in origin.detail, "norm_equiv is used"
    positions = torch.cat([torch.zeros(1, 1, 384), encoder["pos_embed"]], dim=1)
    exact = {f"head.{key.removeprefix('linear.')}": value for key, value in content["state_dict"].items()}
    load_weights(model.double(), {**encoder, **exact, "pos_embed": positions}, tmp_path)
    logits, shown = tapped(model, formula_image(IMAGE), 1)
    assert_published("vit", logits, shown, 96)


# --- norm_equiv -----------------------------------------------------------------------------------------


def normed(**changes: Any) -> DecModel:
    return randomised(create_reference(late_token_recipe(2, tap_norm=True, **changes)), strength=0.2)


def test_the_norm_changes_its_map_and_nothing_else() -> None:
    model = normed().double()
    plain = create_reference(late_token_recipe(2)).double()
    load_weights(plain, without("norm_equiv.", model), Path("x"))
    image = torch.from_numpy(photographs(SIZE, 2)).double()
    norm = model.backbone.norm_equiv
    for place in range(4):
        (logits, shown), (own, raw) = tapped(model, image, place), tapped(plain, image, place)
        assert torch.equal(logits, own)
        if place == 1:
            centred = raw - raw.mean(dim=1, keepdim=True)
            scaled = centred / (raw.var(dim=1, keepdim=True, correction=0) + norm.eps).sqrt()
            raw = scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
        assert torch.allclose(shown, raw, rtol=1e-12, atol=1e-12), place


@pytest.mark.parametrize("canonicalizer", [None, SMALL_CANONICALIZER], ids=["alone", "with DEC"])
def test_engines_show_the_normed_map_and_measure_it(canonicalizer: CanonicalizerRecipe | None) -> None:
    model = randomised(create_reference(late_token_recipe(2, canonicalizer, tap_norm=True)))
    images = image_set(photographs(SIZE, 2))
    references = run_references(model, images, ReferenceOptions(Forms(tap=1), layers=True))
    report = run_parity(references, OnnxRuntimeEngine(export(lower(model), Forms(tap=1))))
    assert report.passed, report.failures
    found = report[Equivariance].equivariance
    assert found is not None
    untapped = run_references(model, images, ReferenceOptions(Forms(), layers=True))
    report = run_parity(untapped, TorchEngine(model.float(), inner=True))
    layers = report[Equivariance].equivariance
    assert layers is not None
    # An inner tensor is normalised by the measure, an output by the model.
    for name, facts in found.layers["1"].items():
        assert facts.reference == pytest.approx(layers.layers["1"][name].reference, rel=1e-9)


def test_the_norm_computes_in_float32_beside_a_backbone_in_16_bits() -> None:
    narrow = in_precision(normed(), Format.FP16)
    image = photographs(SIZE, 2)
    shown = TorchEngine(narrow, tap=1)(image)["feature_map_1"]
    engine = OnnxRuntimeEngine(export(lower(normed(), Format.FP16), Forms(precision=Format.FP16, tap=1)))
    found = engine(image)["feature_map_1"]
    assert shown.dtype == found.dtype == np.float32
    assert np.abs(found - shown).max() < 0.05 * np.abs(shown).max()
    # A mean over channels that float16 has rounded would not be zero after a norm.
    norm = narrow.backbone.norm_equiv.float()
    undone = (torch.from_numpy(shown) - norm.bias[:, None, None]) / norm.weight[:, None, None]
    assert undone.mean(dim=1).abs().max() < 1e-5


def ser_content(model: DecModel, *, has_norm: bool) -> dict[str, Any]:
    state = {k: v.clone() for k, v in model.backbone.state_dict().items() if not k.startswith("head.")}
    student = {k: v for k, v in state.items() if has_norm or not k.startswith("norm_equiv.")}
    student["pos_embed"] = student["pos_embed"][:, 1:].clone()
    return {"student": student, "args": Namespace(equiv_layer=2)}


def test_the_norm_is_loaded_or_missed(tmp_path: Path) -> None:
    source = normed()
    recipe = source.recipe
    model, origin = load_reference(recipe, saved(ser_content(source, has_norm=True), tmp_path))
    assert torch.equal(model.backbone.norm_equiv.weight, source.backbone.norm_equiv.weight)
    assert torch.equal(model.backbone.norm_equiv.bias, source.backbone.norm_equiv.bias)
    assert "norm_equiv" not in origin.detail
    _, origin = load_reference(late_token_recipe(2), saved(ser_content(source, has_norm=True), tmp_path))
    assert "dropped: norm_equiv.* (2)." in origin.detail
    with pytest.raises(CheckpointError) as raised:
        load_reference(recipe, saved(ser_content(source, has_norm=False), tmp_path))
    assert str(raised.value) == (
        f"'{tmp_path / 'ser.pth'}' (MoCo v3 of SER, its student) has no norm_equiv, expected the norm of SER's map, "
        "because the recipe sets tap_norm: give a checkpoint that was trained with it, or set tap_norm to false."
    )
    half = ser_content(source, has_norm=True)
    del half["student"]["norm_equiv.bias"]
    with pytest.raises(CheckpointError, match=f"'norm_equiv.bias' {WIDTH} is missing"):
        load_reference(recipe, saved(half, tmp_path))


def test_a_whole_model_keeps_its_norm(tmp_path: Path) -> None:
    for source in (normed(), randomised(create_reference(late_token_recipe(2, SMALL_CANONICALIZER, tap_norm=True)))):
        path = tmp_path / "weights.safetensors"
        save_file(published_state_dict(source), path)
        model, _ = load_reference(source.recipe, path, strict=True)
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


# --- avgpool_patchtokens --------------------------------------------------------------------------------


def test_the_head_alternates_between_class_token_and_mean() -> None:
    model = randomised(create_reference(late_token_recipe(2, avgpool_patchtokens=True))).double()
    image = torch.from_numpy(photographs(SIZE, 2)).double()
    head, tokens = model.backbone.head, model.backbone.forward_features(image)
    assert head.in_features == 2 * WIDTH
    expected = (
        F.linear(tokens[:, 0], head.weight[:, ::2]) + F.linear(tokens[:, 1:].mean(1), head.weight[:, 1::2]) + head.bias
    )
    with torch.inference_mode():
        assert torch.allclose(model(image).logits, expected, rtol=1e-12, atol=1e-12)


def test_the_mean_of_the_patches_is_exported() -> None:
    model = randomised(create_reference(late_token_recipe(2, avgpool_patchtokens=True)))
    images = image_set(photographs(SIZE, 4))
    report = run_parity(run_references(model, images), OnnxRuntimeEngine(export(lower(model))))
    assert report.passed, report.failures


def test_pretrained_weights_have_no_head_for_the_mean() -> None:
    backbone = BackboneRecipe(
        timm="vit_tiny_patch16_224.augreg_in21k_ft_in1k", family="vit", cls_insert_layer=0, avgpool_patchtokens=True
    )
    recipe = Recipe(name="mean", backbone=backbone, canonicalizer=None, augment_layer_id=(-100,))
    reason = load_pretrained(create_reference(recipe), recipe)
    assert reason == f"timm's pretrained weights of {backbone.timm} have no head that reads the mean of the patches"
