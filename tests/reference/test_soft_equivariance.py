"""Snapshots of Tunable soft equivariance load as plain transformers, whose projections are folded into their weights.

`data/soft_equivariant.json` holds what the published code of arXiv 2603.26657 (with transformers 4.57.6, in float64)
computes from the files that these tests write: the logits at every 21st row and column.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dec_export.errors import CheckpointError, RecipeError
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import export
from dec_export.recipe.model import Recipe
from dec_export.recipe.preparation import PreparationRecipe
from dec_export.reference.backbones.rotary import rotary_table
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.preparation import prepare
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.files import read_content
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from dec_export.reference.weights.layout import Checkpoint
from dec_export.reference.weights.layouts import read_checkpoint
from dec_export.reference.weights.whole_model import read_whole_model
from tests.helpers.soft_equivariant import (
    KINDS,
    SIZE,
    logits_of,
    reflections_mean,
    rotations_mean,
    small,
    weights_of,
    write_snapshot,
)

TRUTH = json.loads((Path(__file__).parent / "data" / "soft_equivariant.json").read_text())
VIT, DINOV2, DINOV3 = KINDS


def images() -> Tensor:
    return 1.5 * torch.sin(0.37 * torch.arange(2 * 3 * SIZE * SIZE, dtype=torch.float64)).reshape(2, 3, SIZE, SIZE)


def in_float64(folder: Path, recipe: Recipe | None = None) -> DecModel:
    """Return the model of a snapshot in float64, with folded weights that were never rounded to float32."""
    recipe = recipe or small(Recipe.load(folder))
    model = create_reference(recipe).double()
    file = folder / "model.safetensors"
    whole = read_whole_model(recipe, Checkpoint(read_content(file), file), published_state_dict(model))
    load_weights(model, whole.weights, whole.origin)
    return model


def distance(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("arch", KINDS)
def test_a_snapshot_gives_the_numbers_of_the_published_code(arch: str, tmp_path: Path) -> None:
    with torch.inference_mode():
        logits = in_float64(write_snapshot(tmp_path, arch))(images()).logits[:, :, ::21, ::21]
    assert distance(logits.flatten(), torch.tensor(TRUTH[arch], dtype=torch.float64)) <= 1e-12


@pytest.mark.parametrize("softness", [(0.0, 0.5), (1.0, 0.5), (0.3, 1.0)])
@pytest.mark.parametrize("arch", KINDS)
def test_folded_projections_are_those_of_every_pass(arch: str, softness: tuple[float, float], tmp_path: Path) -> None:
    """A softness of one projects nothing, as in the published code, whatever matrix the file holds."""
    fields = {"soft_thresholding": softness[0], "soft_thresholding_pos": softness[1]}
    weights, kind = weights_of(arch), KINDS[arch]
    with torch.inference_mode():
        found = in_float64(write_snapshot(tmp_path, arch, **fields))(images()).logits
        for value, prefix, size in zip(
            softness, (f"{kind.patches}filter.", kind.projection), (kind.patch**2, kind.grid**2), strict=True
        ):
            if value == 1:
                weights |= {prefix + name: torch.eye(size).double() for name in ("filter_w_T", "filter_x")}
        assert distance(found, logits_of(arch, weights, images())) <= 1e-12


@pytest.mark.parametrize("arch", KINDS)
def test_each_projection_matters_to_the_tests(arch: str, tmp_path: Path) -> None:
    kind, truth = KINDS[arch], logits_of(arch, weights_of(arch), images())
    for key, size in ((f"{kind.patches}filter.filter_w_T", kind.patch), (f"{kind.projection}filter_x", kind.grid)):
        changed = logits_of(arch, weights_of(arch) | {key: torch.eye(size**2).double()}, images())
        assert distance(changed, truth) > 1e-3


@pytest.mark.parametrize("arch", KINDS)
def test_a_folder_loads_and_exports(arch: str, tmp_path: Path) -> None:
    """The float32 export, at two batch sizes, is as near to float64 as the float32 reference is."""
    folder = write_snapshot(tmp_path / "snapshot", arch)
    model, source = load_reference(small(Recipe.load(folder)), folder, strict=True)
    assert (source.backbone, source.canonicalizer, source.file) == ("checkpoint", "none", "model.safetensors")
    assert "projections folded into the patch embedding and the positions" in source.detail
    proto = export(lower(model))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    truth = logits_of(arch, weights_of(arch), images())
    with torch.inference_mode():
        floor = distance(model(images().float()).logits.double(), truth)
    for count in (1, 2):
        (logits,) = session.run(["logits"], {session.get_inputs()[0].name: images()[:count].float().numpy()})
        # Twice the noise floor, which is the project's gate.
        assert distance(torch.from_numpy(logits).double(), truth[:count]) <= 2 * max(floor, 2.0**-24)


def test_the_projections_of_the_tests_are_projections() -> None:
    for matrix in (rotations_mean(4), reflections_mean(5)):
        torch.testing.assert_close(matrix @ matrix, matrix, rtol=0, atol=1e-15)
        assert 0 < int(matrix.trace().round()) < len(matrix)


def test_dinov2_is_projected_before_its_positions_are_interpolated(tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, DINOV2)
    positions = in_float64(folder).backbone.pos_embed
    assert positions.shape == (1, 1 + 4 * 4, 24)
    whole = small(Recipe.load(folder)).model_dump()
    whole["backbone"]["image_size"] = whole["input"]["image_size"] = 70
    whole["backbone"]["preparation"] = None
    own = in_float64(folder, Recipe.model_validate(whole)).backbone.pos_embed
    stored = weights_of(DINOV2)["dinov2.embeddings.position_embeddings"]
    torch.testing.assert_close(own[:, 1:], reflections_mean(5) @ stored[:, 1:], rtol=0, atol=1e-14)


def test_the_last_pixels_that_patches_leave_out_are_cropped() -> None:
    corner = prepare(images(), PreparationRecipe(resize=SIZE, crop=56, crop_at="corner"))
    assert torch.equal(corner, images()[..., :56, :56])
    centre = prepare(images(), PreparationRecipe(resize=SIZE, crop=56))
    assert torch.equal(centre, images()[..., 4:60, 4:60])


def test_a_rotary_table_holds_sines_and_cosines() -> None:
    coordinates, frequencies = torch.tensor([[0.0, 0.25], [0.5, -1.0]]).double(), torch.tensor([1.0, 0.5]).double()
    table = rotary_table(coordinates, frequencies)
    assert table.shape == (2, 16)
    turns = [[0.0, 0.0, 0.25, 0.125], [0.5, 0.25, -1.0, -0.5]]
    expected = [
        [math.sin(2 * math.pi * t) for t in row * 2] + [math.cos(2 * math.pi * t) for t in row * 2] for row in turns
    ]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_rotary_table_starts_as_timms_own_positions() -> None:
    document: dict[str, Any] = {
        "name": "dinov3",
        "backbone": {"timm": "vit_small_patch16_dinov3", "family": "vit", "image_size": 64, "num_classes": 3},
        "canonicalizer": None,
        "augment_layer_id": (-100,),
    }
    document["backbone"]["timm_args"] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    computed = create_reference(Recipe.model_validate(document))
    document["backbone"]["position_embedding"] = "rotary_table"
    stored = create_reference(Recipe.model_validate(document))
    assert isinstance(stored.backbone.rope.table, nn.Parameter)
    with torch.inference_mode():
        assert torch.equal(stored(images().float()).logits, computed(images().float()).logits)
    with pytest.raises(RecipeError, match="Expected 4 x 4 patches, found 4 x 5"):
        stored.backbone.rope.get_embed([4, 5])


def test_a_rotary_table_needs_a_rotary_embedding(small_recipe: Recipe) -> None:
    backbone = small_recipe.backbone.model_copy(update={"position_embedding": "rotary_table"})
    with pytest.raises(RecipeError, match="'rotary_table' needs a transformer with the rotary embedding of DINOv3"):
        create_reference(small_recipe.model_copy(update={"backbone": backbone}))
    with pytest.raises(ValueError, match="drop cls_insert_layer"):
        type(backbone).model_validate({**backbone.model_dump(), "cls_insert_layer": 0})


def test_the_layout_is_found_by_its_keys(tmp_path: Path) -> None:
    file = write_snapshot(tmp_path, DINOV3) / "model.safetensors"
    found = read_checkpoint(Checkpoint(read_content(file), file))
    assert found.layout == "soft equivariant"
    assert found.is_whole_model
    assert found.dropped == {"embeddings.mask_token": 1}


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, VIT)
    recipe = small(Recipe.load(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        load_reference(recipe, folder)


def test_weights_without_their_config_are_refused(tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, VIT)
    recipe = small(Recipe.load(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json lies beside it"):
        load_reference(recipe, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_classes", 6, "backbone.num_classes 5, as its config.json says, and recipe 'mine' has 6"),
        ("timm", "vit_small_patch16_224", "backbone.timm vit_base_patch16_224"),
        ("layer_norm_eps", None, "backbone.layer_norm_eps 1e-12"),
    ],
)
def test_a_recipe_of_another_model_is_refused(field: str, value: object, message: str, tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, VIT)
    document = small(Recipe.load(folder)).model_dump() | {"name": "mine"}
    document["backbone"][field] = value
    with pytest.raises(CheckpointError, match=message):
        load_reference(Recipe.model_validate(document), folder)


def _without(key: str) -> Any:
    return lambda weights: {name: value for name, value in weights.items() if name != key}


def _with(key: str, value: Tensor) -> Any:
    return lambda weights: weights | {key: value}


_PATCHES = "vit.embeddings.patch_embeddings.projection."
DAMAGED = [
    (VIT, _without(f"{_PATCHES}filter.filter_x"), f"has no '{_PATCHES}filter.filter_x'"),
    (VIT, _without("vit.encoder.layer.1.output.dense.bias"), "'blocks.1.mlp.fc2.bias' 24 is missing"),
    (VIT, _with("vit.other", torch.ones(2)), "'vit.other' 2 is not expected"),
    (VIT, _with("classifier.weight", torch.ones(6, 24, 1, 1)), "'classifier.weight' is 6x24x1x1, expected 5x24x1x1"),
    (VIT, _with(f"{_PATCHES}filter.filter_w_T", torch.ones(256, 256)), "is no projection"),
    (VIT, _with(f"{_PATCHES}filter.filter_w_T", torch.full((256, 256), math.nan)), "is no projection"),
    (VIT, _with(f"{_PATCHES}filter.filter_w_T", torch.eye(64)), "do not fit each other"),
    (VIT, _with(f"{_PATCHES}filter.filter_w_T", torch.ones(256)), "as 256 of torch.float32, expected a square matrix"),
    (VIT, _with(f"{_PATCHES}filter.filter_w_T", torch.ones(256, 256).int()), "expected a square matrix"),
    (VIT, _with("vit.embeddings.filter_pos.filter_x", torch.eye(25)), "do not fit each other"),
    (DINOV2, _without("dinov2.layernorm.bias"), "'norm.bias' 24 is missing"),
    (DINOV3, _with("backbone.rope_embeddings.filter_coords.filter_x", torch.eye(25)), "positions for 5 x 5 patches"),
    (DINOV3, _with("backbone.rope_embeddings.filter_coords.filter_x", torch.eye(15)), "expected a square grid"),
    (DINOV3, _without("backbone.layer.0.attention.k_proj.weight"), "qkv.weight' 72x24 is missing"),
    (
        DINOV3,
        _with("backbone.norm.weight", torch.full((24,), math.inf)),
        "infinity in torch.float32, in 'backbone.norm",
    ),
    (DINOV3, _with("backbone.norm.other", torch.ones(1)), "'backbone.norm.other' 1 is not expected"),
]


@pytest.mark.parametrize(("arch", "damage", "message"), DAMAGED)
def test_a_damaged_snapshot_is_refused_by_the_name_of_what_differs(
    arch: str, damage: Any, message: str, tmp_path: Path
) -> None:
    folder = write_snapshot(tmp_path, arch, damage(weights_of(arch)))
    with pytest.raises(CheckpointError, match=message):
        load_reference(small(Recipe.load(folder)), folder)


def test_weights_are_rounded_once(tmp_path: Path) -> None:
    folder = write_snapshot(tmp_path, VIT)
    model, _ = load_reference(small(Recipe.load(folder)), folder)
    kernels = weights_of(VIT)[f"{_PATCHES}weight"].flatten(2)
    folded = torch.from_numpy(np.einsum("fi,bci->bcf", rotations_mean(16).numpy(), kernels.numpy()))
    found = model.backbone.patch_embed.proj.weight.flatten(2)
    # Half a unit in the last place of float32, relative to each value, and the rounding of float64 beside zeros.
    assert bool(((found.double() - folded).abs() <= folded.abs() * 2.0**-24 + 1e-16).all())
