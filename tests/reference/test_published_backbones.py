"""The parts in which the backbones of the published program on transformers differ from timm's models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.families import InsertionRecipe
from dec_export.recipe.model import BackboneRecipe, HeadRecipe, Recipe
from dec_export.reference.backbones.insertion import feature_maps, run_with_warps, stage_outputs
from dec_export.reference.model import create_reference
from dec_export.reference.warp import Phi, unwarp, warp
from tests.helpers.models import SMALL_CANONICALIZER
from tests.helpers.published import imported

LINEAR, NEVER = HeadRecipe(kind="linear"), (-100,)
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}


def recipe_for(backbone: dict[str, object], **fields: object) -> Recipe:
    sizes = {"timm": "vit_tiny_patch16_224", "family": "vit", "image_size": 32, "num_classes": 5, "timm_args": SMALL}
    settings = {"name": "small", "canonicalizer": SMALL_CANONICALIZER, **fields}
    return Recipe.model_validate({**settings, "backbone": BackboneRecipe.model_validate({**sizes, **backbone})})


def phis(count: int = 2) -> list[Phi]:
    generator = torch.Generator().manual_seed(5)
    return [
        Phi(*(torch.rand(1, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))) for _ in range(count)
    ]


def image(size: int = 32) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_every_layer_norm_has_the_recipes_epsilon() -> None:
    norms = create_reference(recipe_for({"layer_norm_eps": 1e-12})).backbone.modules()
    found = {norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}
    assert found == {1e-12}


def test_the_classifier_reads_the_class_token_and_the_mean_of_patches() -> None:
    recipe = recipe_for({"readout": "token_and_mean", "timm_args": {**SMALL, "reg_tokens": 2}})
    backbone = create_reference(recipe).double().backbone
    with torch.inference_mode():
        tokens = backbone.forward_features(image())
        read = torch.cat([tokens[:, 0], tokens[:, 3:].mean(dim=1)], dim=1)
        torch.testing.assert_close(backbone(image()), backbone.head(read), rtol=0, atol=1e-12)


@pytest.mark.parametrize("timm", ["resnet18", "test_vit3"])
def test_a_readout_without_a_place_is_refused(timm: str) -> None:
    family = "resnet" if timm == "resnet18" else "vit"
    recipe = recipe_for(
        {"readout": "token_and_mean", "timm": timm, "family": family, "timm_args": {}, "image_size": 160}
    )
    with pytest.raises(RecipeError, match="needs a vision transformer of timm with a class token"):
        create_reference(recipe)


@pytest.mark.parametrize("places", [(0, 1), (2,), (3,)])
def test_the_swin_of_transformers_ends_its_stages_by_downsampling(places: tuple[int, ...], tmp_path: Path) -> None:
    """Stage i is warped before its blocks, and unwarped after what timm counts to the next stage."""
    recipe = imported(tmp_path, "ada_swin_dem", task="segmentation", segmentation_head="linear", num_classes=3)
    small = recipe.backbone.model_copy(update={"timm_args": {"embed_dim": 24}, "preparation": None})
    fields = {"augment_layer_id": places, "unaugment_layer_id": places, "input": {"image_size": 224}}
    recipe = Recipe.model_validate({**recipe.model_dump(), "backbone": small.model_dump(), **fields})
    backbone = create_reference(recipe).double().backbone
    solved = dict(zip(places, phis(len(places)), strict=True))

    def mapped(x: Tensor, function: object, phi: Phi) -> Tensor:
        return function(phi, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[operator]

    with torch.inference_mode():
        x = backbone.patch_embed(image(224))
        for i, layer in enumerate(backbone.layers):
            x = layer.downsample(x)
            x = mapped(x, unwarp, solved[i - 1]) if i - 1 in solved else x
            x = mapped(x, warp, solved[i]) if i in solved else x
            x = layer.blocks(x)
        x = mapped(x, unwarp, solved[3]) if 3 in solved else x
        expected = backbone.norm(x).permute(0, 3, 1, 2)
        (found,) = feature_maps(recipe, backbone, image(224), list(solved.values()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_outputs_are_read_at_the_ends_of_stages_and_at_the_embedding(tmp_path: Path) -> None:
    recipe = imported(tmp_path, "ada_swin_dem")
    small = recipe.backbone.model_copy(update={"timm_args": {"embed_dim": 24}, "preparation": None})
    recipe = recipe.model_copy(update={"backbone": small, "input": recipe.input.model_copy(update={"image_size": 224})})
    backbone = create_reference(recipe).double().backbone
    with torch.inference_mode(), stage_outputs(recipe.backbone, backbone, (-1, 0, 3)) as found:
        run_with_warps(recipe, backbone, image(224), [])
    assert {place: tuple(value.shape[1:]) for place, value in found.items()} == {
        -1: (56, 56, 24),
        0: (28, 28, 48),
        3: (7, 7, 192),
    }


def test_features_that_stay_warped_are_never_unwarped() -> None:
    resnet = {"timm": "test_resnet", "family": "resnet", "timm_args": {}, "image_size": 64}
    fields = {"task": "segmentation", "head": LINEAR, "augment_layer_id": (0,)}
    recipe = recipe_for(resnet, unaugment_layer_id=NEVER, published_defects=("features_stay_warped",), **fields)
    undone = recipe_for(resnet, unaugment_layer_id=(0,), **fields)
    backbone = create_reference(recipe).double().backbone
    with torch.inference_mode():
        stem = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(image(64)))))
        expected = warp(phis()[0], stem)
        for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
            expected = stage(expected)
        (found,) = feature_maps(recipe, backbone, image(64), phis())
        (other,) = feature_maps(undone, backbone, image(64), phis())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, other)
    with pytest.raises(ValidationError, match="features_stay_warped goes with an unaugment_layer_id"):
        recipe_for(resnet, unaugment_layer_id=(0,), published_defects=("features_stay_warped",), **fields)


def test_shifted_patches_take_the_last_prefix_token_in() -> None:
    recipe = recipe_for(
        {"timm_args": {**SMALL, "reg_tokens": 1}},
        task="segmentation",
        head=LINEAR,
        augment_layer_id=(0,),
        unaugment_layer_id=(0,),
        published_defects=("patches_shifted_by_one",),
    )
    backbone = create_reference(recipe).double().backbone
    with torch.inference_mode():
        tokens = backbone.forward_features(image())
        (found,) = feature_maps(recipe, backbone, image(), [])
    assert tokens.shape[1] == 2 + 16
    assert torch.equal(found, tokens[:, 1:-1].transpose(1, 2).reshape(1, 24, 4, 4))


def test_defects_need_what_they_are_defects_of() -> None:
    with pytest.raises(ValidationError, match="and classification has no head"):
        recipe_for({}, published_defects=("patches_shifted_by_one",))
    resnet = {"timm": "test_resnet", "family": "resnet", "timm_args": {}, "image_size": 64}
    places = {"augment_layer_id": (0,), "unaugment_layer_id": (0,)}
    shifted = recipe_for(
        resnet, task="segmentation", head=LINEAR, published_defects=("patches_shifted_by_one",), **places
    )
    with pytest.raises(RecipeError, match="patches_shifted_by_one needs a backbone of tokens"):
        create_reference(shifted)


def test_the_embedding_may_be_unwarped_at_its_own_size() -> None:
    """With deform_resolution, the published program resizes the features of blocks, and not those of the embedding."""
    insertion = InsertionRecipe(stages="blocks", embedding="norm_pre", layout="tokens", resizes_embedding=False)
    fields = {"augment_layer_id": (0,), "unaugment_layer_id": (-1,), "deform_resolution": (7, 7)}
    recipe = recipe_for({"family": "custom", "insertion": insertion}, **fields)
    backbone = create_reference(recipe).double().backbone

    def on_patches(tokens: Tensor, function: object, resolution: tuple[int, int] | None) -> Tensor:
        patches = tokens[:, 1:].transpose(1, 2).reshape(1, 24, 4, 4)
        changed = function(phis()[0], patches, resolution)  # type: ignore[operator]
        return torch.cat([tokens[:, :1], changed.flatten(2).transpose(1, 2)], dim=1)

    with torch.inference_mode():
        tokens = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(image())))
        tokens = on_patches(on_patches(tokens, unwarp, None), warp, (7, 7))
        expected = backbone.forward_head(backbone.norm(backbone.blocks(tokens)))
        found = run_with_warps(recipe, backbone, image(), phis(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_swin_at_timms_stages_refuses_the_unwarp_that_no_model_can_mean() -> None:
    with pytest.raises(ValidationError, match=r"must not have -1 with family 'swin'.*\(B, h, w, C\)"):
        recipe_for({"family": "swin"}, augment_layer_id=(-1,), unaugment_layer_id=(-1,))


@pytest.mark.parametrize("stages", ["blocks", ["blocks.0", "blocks.1"]])
def test_ends_go_with_as_many_stages(stages: object) -> None:
    wanted = r"ends must name one module for each of the paths in stages"
    with pytest.raises(ValidationError, match=wanted):
        InsertionRecipe.model_validate(
            {"stages": stages if isinstance(stages, str) else tuple(stages), "ends": ("norm",)}
            | {"embedding": None, "layout": "tokens"}
        )


def test_a_tap_of_the_embedding_needs_one() -> None:
    beit = {
        "timm": "beit_base_patch16_224",
        "family": "beit",
        "image_size": 64,
        "timm_args": {**SMALL, "patch_size": 16},
    }
    head = HeadRecipe(kind="dpt", taps=(-1, 0), width=4)
    recipe = recipe_for(beit, task="segmentation", head=head, augment_layer_id=(0,), unaugment_layer_id=(0,))
    with pytest.raises(RecipeError, match=r"taps place -1, but .* starts at 0"):
        create_reference(recipe)
