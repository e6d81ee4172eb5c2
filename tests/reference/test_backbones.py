"""Warps are inserted correctly into timm's backbones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from dec_export.errors import RecipeError
from dec_export.recipe.families import FAMILIES, Family, InsertionRecipe
from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.backbones.insertion import run_with_warps
from dec_export.reference.backbones.stages import assign_places, visited_places
from dec_export.reference.model import create_reference, preprocessing_of
from dec_export.reference.warp import Phi, unwarp, warp
from tests.conftest import SMALL_CANONICALIZER, photographs, randomised
from tests.helpers.models import CONVNEXT, MODELS, recipe_for

F64 = torch.float64


def build(kind: str, **fields: object) -> tuple[Recipe, nn.Module, Tensor]:
    recipe = recipe_for(*MODELS[kind], **fields)
    model = randomised(create_reference(recipe)).double()
    size = recipe.backbone.image_size
    return recipe, model.backbone, torch.from_numpy(photographs(size, 1)).double()


def random_phis(count: int = 2) -> list[Phi]:
    generator = torch.Generator().manual_seed(3)
    return [Phi(*(torch.rand(1, r, r - 1, generator=generator, dtype=F64) for _ in "xy")) for r in (6, 4)[:count]]


@pytest.mark.parametrize(
    ("places", "visited", "count", "expected"),
    [
        ([-1, 0, 1], [-1, 0, 1, 2], 2, {-1: 0, 0: 1}),
        ([-1, 0, 1], [0, 1, 2], 2, {0: 0, 1: 1}),  # BEiT
        ([2, 0], [-1, 0, 1, 2], 2, {0: 0, 2: 1}),  # in the order of the visit, not of the list
        ([-100], [-1, 0, 1], 2, {}),
        ([0, 1, 2], [0, 1, 2], 1, {0: 0}),
        ([7], [0, 1], 2, {}),
    ],
)
def test_phis_are_used_up_in_the_order_of_the_visit(
    places: list[int], visited: list[int], count: int, expected: dict[int, int]
) -> None:
    assert assign_places(places, visited, count) == expected


@pytest.mark.parametrize("kind", MODELS)
def test_identity_warps_leave_the_backbone_as_it_is(kind: str) -> None:
    recipe, backbone, image = build(kind, augment_layer_id=(-1, 0, 1), unaugment_layer_id=(0, 1))
    ones = [Phi.ones(1, r, image) for r in (6, 4)]
    with torch.inference_mode():
        torch.testing.assert_close(run_with_warps(recipe, backbone, image, ones), backbone(image), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", MODELS)
def test_never_means_the_plain_backbone(kind: str) -> None:
    recipe, backbone, image = build(kind, augment_layer_id=(-100,), unaugment_layer_id=(-100,))
    with torch.inference_mode():
        assert torch.equal(run_with_warps(recipe, backbone, image, random_phis()), backbone(image))


@pytest.mark.parametrize("kind", MODELS)
def test_hooks_are_gone_after_the_pass(kind: str) -> None:
    recipe, backbone, image = build(kind)
    with torch.inference_mode():
        run_with_warps(recipe, backbone, image, random_phis())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def through_stages(
    stages: nn.Sequential, x: Tensor, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run all stages in order, with `before` and `after` around stage 1."""
    for i, stage in enumerate(stages):
        x = after(stage(before(x))) if i == 1 else stage(x)
    return x


@pytest.mark.parametrize("kind", ["vit", "registers"])
def test_vit_warps_the_image_and_the_tokens_of_blocks(kind: str) -> None:
    recipe, backbone, image = build(kind, augment_layer_id=(-1, 1), unaugment_layer_id=(1,))
    first, second = random_phis()
    height, width = backbone.patch_embed.grid_size
    prefix = backbone.num_prefix_tokens

    def on_map(tokens: Tensor, function: object, phi: Phi) -> Tensor:
        maps = tokens[:, prefix:].permute(0, 2, 1).reshape(1, -1, height, width)
        back = function(phi, maps).flatten(2).permute(0, 2, 1)
        return torch.cat([tokens[:, :prefix], back], 1)

    with torch.inference_mode():
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(warp(first, image))))
        x = through_stages(backbone.blocks, x, lambda t: on_map(t, warp, second), lambda t: on_map(t, unwarp, first))
        expected = backbone.forward_head(backbone.norm(x))
        found = run_with_warps(recipe, backbone, image, [first, second])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_beit_never_visits_the_image() -> None:
    recipe, backbone, image = build("beit", augment_layer_id=(-1, 0, 1))
    assert visited_places(recipe, backbone)[0] == 0
    first, second = random_phis()
    at_blocks = recipe.model_copy(update={"augment_layer_id": (0, 1)})
    with torch.inference_mode():
        assert torch.equal(
            run_with_warps(recipe, backbone, image, [first, second]),
            run_with_warps(at_blocks, backbone, image, [first, second]),
        )


def test_swin_warps_channels_last_features_of_stages() -> None:
    recipe, backbone, image = build("swin", augment_layer_id=(-1, 1), unaugment_layer_id=(1,))
    first, second = random_phis()

    def on_map(x: Tensor, function: object, phi: Phi) -> Tensor:
        return function(phi, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    with torch.inference_mode():
        x = backbone.patch_embed(warp(first, image))
        x = through_stages(backbone.layers, x, lambda t: on_map(t, warp, second), lambda t: on_map(t, unwarp, first))
        expected = backbone.forward_head(backbone.norm(x))
        found = run_with_warps(recipe, backbone, image, [first, second])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_convolutional_models_are_warped_at_their_stages(kind: str) -> None:
    recipe, backbone, image = build(kind, augment_layer_id=(-1, 1), unaugment_layer_id=(-1, 1))
    first, second = random_phis()

    def stem(x: Tensor) -> Tensor:
        if kind == "convnext":
            return backbone.stem(x)
        return backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(x))))

    with torch.inference_mode():
        stages = backbone.stages if kind == "convnext" else [getattr(backbone, f"layer{i}") for i in range(1, 5)]
        x = unwarp(first, stem(warp(first, image)))
        x = through_stages(stages, x, lambda t: warp(second, t), lambda t: unwarp(second, t))
        expected = backbone.forward_head(backbone.norm_pre(x) if kind == "convnext" else x)
        found = run_with_warps(recipe, backbone, image, [first, second])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("insertion", "message"),
    [
        ({"stages": "blocks"}, "has no 'blocks', which the recipe's insertion names: its parts are stem, stages"),
        ({"stages": ("stages.0", "stages.9")}, r"has no 'stages\.9'"),
        ({"stages": "stages", "embedding": "patches"}, "has no 'patches'"),
        ({"stages": "head.norm"}, "has no modules in 'head.norm'"),
        ({"stages": "stages", "layout": "tokens"}, "has no 'num_prefix_tokens'"),
    ],
)
def test_an_insertion_that_the_model_does_not_have_is_a_recipe_error(insertion: dict, message: str) -> None:
    own = InsertionRecipe(**{"embedding": None, "layout": "channels_first", **insertion})
    backbone = BackboneRecipe(timm="test_convnext", family="custom", image_size=160, num_classes=7, insertion=own)
    with pytest.raises(RecipeError, match=message):
        create_reference(Recipe(name="test", backbone=backbone, canonicalizer=SMALL_CANONICALIZER))


def test_places_that_do_not_exist_would_leave_the_canonicalizer_without_effect() -> None:
    recipe = recipe_for("test_vit", "vit", 160, augment_layer_id=(99,))
    with pytest.raises(RecipeError, match=r"none of the places \[99\] exists .* passes -1 to 5"):
        create_reference(recipe)


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    recipe = recipe_for("test_vit", "vit", 160)
    before = torch.get_rng_state()
    states = [create_reference(recipe, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    key = "DEM.module_list.0.0.conv1.weight"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_a_model_that_timm_does_not_have_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="has no model 'vit_gigantic'"):
        create_reference(recipe_for("vit_gigantic", "vit"))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet18", "vit"),
        ("swin_tiny_patch4_window7_224", "vit"),
        ("beit_base_patch16_224", "vit"),
        ("test_vit", "swin"),
        ("test_vit", "beit"),
    ],
)
def test_a_model_of_another_family_is_a_recipe_error(name: str, family: str) -> None:
    with pytest.raises(RecipeError, match=f"is not of the family '{family}'"):
        create_reference(recipe_for(name, family, 160 if name == "test_vit" else 224))


def test_a_tag_that_timm_does_not_have_is_a_recipe_error() -> None:
    for function in (create_reference, preprocessing_of):
        with pytest.raises(RecipeError, match=r"test_vit\.nonsense"):
            function(recipe_for("test_vit.nonsense", "vit", 160))


def with_sizes(name: str, family: str, image_size: int, **sizes: int) -> Recipe:
    recipe = recipe_for(name, family, image_size)
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"timm_args": sizes})})


def test_sizes_of_ones_own_make_a_model_of_those_sizes() -> None:
    backbone = create_reference(with_sizes("test_vit", "vit", 64, depth=3, embed_dim=24, num_heads=3, patch_size=8))
    assert len(backbone.backbone.blocks) == 3
    assert backbone.backbone.pos_embed.shape == (1, 1 + 8 * 8, 24)
    assert backbone.backbone.blocks[0].attn.num_heads == 3


def test_a_size_that_the_architecture_does_not_have_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match=r"timm cannot create 'swin_tiny_patch4_window7_224'.*depth"):
        create_reference(with_sizes("swin_tiny_patch4_window7_224", "swin", 224, depth=3))


def test_an_image_size_that_the_model_cannot_have_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="multiple of test_vit's patches of 16 pixels, found 101"):
        create_reference(recipe_for("test_vit", "vit", 101))


def test_preprocessing_is_the_pretrained_configuration() -> None:
    recipe = Recipe.named("vit_s")
    cfg = timm.get_pretrained_cfg(recipe.backbone.timm)
    preprocessing = preprocessing_of(recipe)
    assert preprocessing.mean == tuple(cfg.mean) == (0.5, 0.5, 0.5)
    assert preprocessing.crop_pct == cfg.crop_pct


def test_a_family_is_one_entry_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Input should be 'vit', 'beit', 'swin', 'resnet' or 'custom'"):
        recipe_for("test_convnext", "convnext", 160)
    monkeypatch.setitem(FAMILIES, "convnext", Family(CONVNEXT, marks=("stem",)))
    recipe = recipe_for("test_convnext", "convnext", 160, augment_layer_id=(0, 1))
    backbone = randomised(create_reference(recipe)).double().backbone
    image = torch.from_numpy(photographs(160, 1)).double()
    of_its_own = recipe_for("test_convnext", "custom", 160, augment_layer_id=(0, 1))
    with torch.no_grad():
        found, expected = (run_with_warps(r, backbone, image, random_phis()) for r in (recipe, of_its_own))
    assert torch.equal(found, expected)
    with pytest.raises(RecipeError, match=r"is not of the family 'convnext' .* resnet, convnext and custom"):
        create_reference(recipe_for("test_resnet", "convnext", 160))
