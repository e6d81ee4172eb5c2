"""Every entry of the published programs' configuration files becomes a recipe, or is refused with its reason."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dec_export.errors import RecipeError
from dec_export.recipe.canonicalizers import CanonicalizerRecipe, DiscreteCanonicalizerRecipe
from dec_export.recipe.model import Recipe
from dec_export.recipe.published.base import ImportOptions
from tests.helpers.published import CONFIG_1, imported, imported_with_notes
from tests.helpers.texts import ADAPTER_CONFIG

ADAPTED = ("vit", "deit", "beit", "dino", "swin", "res_net")
DENSE = {"task": "segmentation", "segmentation_head": "linear", "num_classes": 21}
DPT = {**DENSE, "segmentation_head": "dpt", "dpt_feature_channels": [768] * 4, "dpt_fusion_hidden_size": 64}


def dem(recipe: Recipe) -> CanonicalizerRecipe:
    assert recipe.deep_equilibrium is not None
    return recipe.deep_equilibrium


@pytest.mark.parametrize(
    ("shipped", "entry"),
    [
        ("vit_b_transformers", "ada_vit_dem"),
        ("deit_b_transformers", "ada_deit_dem"),
        ("beit_b_transformers", "ada_beit_dem"),
        ("dinov2_b_transformers", "ada_dino_dem"),
        ("swin_t_transformers", "ada_swin_dem"),
        ("resnet50_transformers", "ada_res_net_dem"),
    ],
)
def test_the_shipped_recipes_are_the_published_configurations(shipped: str, entry: str, tmp_path: Path) -> None:
    recipe = imported(tmp_path, entry)
    assert recipe.name == entry
    assert recipe.model_copy(update={"name": shipped}) == Recipe.named(shipped)


def test_the_programs_images_are_raw_digits_side_by_side(tmp_path: Path) -> None:
    recipe = imported(tmp_path, "vit")
    assert (recipe.image_size, recipe.backbone.image_size) == (210, 224)
    assert (recipe.input.mean, recipe.input.std, recipe.input.squash) == ((0.0,) * 3, (1.0,) * 3, True)
    assert imported(tmp_path, "vit", ImportOptions(image_size=96)).image_size == 96
    assert imported(tmp_path, "vit", data_set="voc", image_size=160).image_size == 160


@pytest.mark.parametrize("model", ADAPTED)
def test_warps_of_blocks_are_undone_as_the_program_does(model: str, tmp_path: Path) -> None:
    recipe = imported(tmp_path, f"ada_{model}_dem", num_phi_layers=2)
    assert recipe.augment_layer_id == (0, 1)
    assert recipe.unaugment_layer_id == ((0, 1) if model in ("vit", "deit", "beit") else (-100,))
    dense = imported(tmp_path, f"ada_{model}_dem", num_phi_layers=2, **DENSE)
    assert dense.unaugment_layer_id == ((-100,) if model == "res_net" else (0, 1))
    defects = {"deit": ("patches_shifted_by_one",), "res_net": ("features_stay_warped",)}
    assert (recipe.published_defects, dense.published_defects) == ((), defects.get(model, ()))


@pytest.mark.parametrize("model", ADAPTED)
def test_the_image_is_warped_when_it_is_not_skipped(model: str, tmp_path: Path) -> None:
    entry, unskipped = f"ada_{model}_dem", {"skip_input_augmentation": False, "num_phi_layers": 2}
    if model in ("deit", "beit"):
        with pytest.raises(RecipeError, match=f"the published program fails for {model}"):
            imported(tmp_path, entry, **unskipped)
        return
    recipe, dense = imported(tmp_path, entry, **unskipped), imported(tmp_path, entry, **unskipped, **DENSE)
    assert recipe.augment_layer_id == dense.augment_layer_id == (-1, 0)
    assert dense.unaugment_layer_id == ((-1,) if model == "res_net" else (-1, 0))


@pytest.mark.parametrize(
    ("model", "used", "family"),
    [("vit", True, "custom"), ("dino", True, "custom"), ("swin", True, "custom"), ("res_net", False, "resnet")],
)
def test_deform_resolution_is_used_by_some_models_and_never_at_the_embedding(
    model: str, used: bool, family: str, tmp_path: Path
) -> None:
    fields = {"deform_resolution": [12, 12], "skip_input_augmentation": False, **DENSE}
    recipe, notes = imported_with_notes(tmp_path, f"ada_{model}_dem", **fields)
    assert recipe.deform_resolution == ((12, 12) if used else None)
    assert recipe.backbone.family == family
    assert recipe.backbone.insertion is None or not recipe.backbone.insertion.resizes_embedding
    assert any("ignores deform_resolution" in note for note in notes) != used
    assert imported(tmp_path, f"ada_{model}_dem", deform_resolution="None").deform_resolution is None


@pytest.mark.parametrize(
    ("model", "taps", "tapped"), [("vit", (0, 1, 2, 3), "input"), ("swin", (-1, 0, 1, 2), "output")]
)
def test_dense_models_have_their_heads(model: str, taps: tuple[int, ...], tapped: str, tmp_path: Path) -> None:
    head = imported(tmp_path, f"ada_{model}_dem", **DPT).head
    assert head is not None
    assert (head.kind, head.taps, head.tapped, head.width) == ("dpt", taps, tapped, 64)
    linear = imported(tmp_path, f"ada_{model}_dem", **DENSE)
    assert linear.head is not None
    assert (linear.head.kind, linear.backbone.num_classes) == ("linear", 21)


def test_longer_lists_are_cut_and_short_solvers_accepted(tmp_path: Path) -> None:
    recipe = dem(imported(tmp_path, "ada_vit_dem", num_phi_layers=1, adapter_coarse_resolution=[6, 4], inner_epochs=2))
    assert (recipe.coarse_resolution, recipe.channels, recipe.kernel_sizes) == ((6,), (3, 32, 64), (3, 3))
    assert (recipe.pool_rates, recipe.max_iter, recipe.antialias) == ((2, 2), 2, False)
    assert dem(imported(tmp_path, "ada_vit_dem", inner_epochs=1)).max_iter == 1


def test_the_librarys_default_configurations_differ(tmp_path: Path) -> None:
    beit = imported(tmp_path, "ada_beit_dem", use_pretrained=False).backbone
    dino = imported(tmp_path, "ada_dino_dem", use_pretrained=False).backbone
    assert beit.timm_args == {"use_rel_pos_bias": False}
    assert (dino.timm_args, dino.readout) == ({"patch_size": 16}, "token_and_mean")
    assert imported(tmp_path, "ada_vit_dem", use_pretrained=False).backbone.timm_args == {}


def test_the_classical_canonicalizer_and_plain_models_import(tmp_path: Path) -> None:
    plain = imported(tmp_path, "vit")
    assert (plain.canonicalizer, plain.augment_layer_id) == (None, (-100,))
    recipe = imported(tmp_path, "vit_cannonicalization")
    expected = DiscreteCanonicalizerRecipe(
        kind="discrete", values=(1, 0.5), limit=8, channels=(3, 4, 1), kernel_sizes=(3, 3)
    )
    assert recipe.canonicalizer == expected
    assert (recipe.augment_layer_id, recipe.unaugment_layer_id) == ((-1,), (-100,))
    dense = imported(tmp_path, "vit_cannonicalization", **DENSE)
    assert (dense.augment_layer_id, dense.unaugment_layer_id) == ((-1,), (-1,))


def test_what_a_configuration_does_not_show_is_said(tmp_path: Path) -> None:
    _, notes = imported_with_notes(tmp_path, "ada_dino_dem")
    assert any("not antialiased" in note for note in notes)
    assert any("what was meant" in note for note in notes)
    _, notes = imported_with_notes(tmp_path, "ada_deit_dem", **DENSE)
    assert any("patches_shifted_by_one" in note for note in notes)
    _, notes = imported_with_notes(tmp_path, "ada_res_net_dem", **DENSE)
    assert any("features_stay_warped" in note for note in notes)
    assert imported_with_notes(tmp_path, "vit")[1] == ()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "cnn"}, "has model 'cnn', of which the published program has no class"),
        ({"deep_equlibrium_mode": False}, "Optim needs gradients at inference"),
        ({"deep_equlibrium_mode": "yes"}, "deep_equlibrium_mode must be true or false"),
        ({"num_phi_layers": "two"}, "num_phi_layers must be a whole number"),
        ({"task": "detection"}, "task must be classification or segmentation"),
        ({"task": "segmentation"}, "expected segmentation_head linear, or dpt"),
        ({**DPT, "dpt_feature_channels": 768}, "with a list dpt_feature_channels"),
        ({"inner_epochs": "many"}, "max_iter.*found 'many'"),
    ],
)
def test_a_configuration_that_is_no_model_to_deploy_is_refused(
    fields: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        imported(tmp_path, "ada_vit_dem", **fields)


FIELDS = sorted({field for entry in yaml.safe_load(CONFIG_1).values() for field in entry} | set(DPT))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["dino", "dpt"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=4))
def test_any_values_give_a_recipe_or_one_sentence(fields: dict[str, object], tmp_path: Path) -> None:
    with suppress(RecipeError):  # any other error fails the test
        recipe = imported(tmp_path, "ada_vit_dem", **fields)
        assert recipe == Recipe.model_validate(recipe.model_dump())


def test_a_huge_number_of_layers_is_refused_before_it_is_counted(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="from 1 to 4096, found 1000000000000"):
        imported(tmp_path, "ada_vit_dem", num_phi_layers=10**12)


def test_names_that_are_no_text_are_no_configurations(tmp_path: Path) -> None:
    path = tmp_path / "config_1.yaml"
    path.write_text(CONFIG_1 + "7: {model: vit}\n")
    with pytest.raises(RecipeError, match=r"one of base, .*ada_res_net_dem\.$"):
        Recipe.load(path)


def test_a_file_without_a_named_entry_lists_all(tmp_path: Path) -> None:
    path = tmp_path / "config_1.yaml"
    path.write_text(CONFIG_1)
    with pytest.raises(
        RecipeError, match=r"none was named.*one of base, vit, vit_cannonicalization, .*ada_res_net_dem"
    ):
        Recipe.load(path)
    with pytest.raises(RecipeError, match="models of its own: leave --backbone out"):
        Recipe.load(f"{path}#vit", backbone="vit_b")


@pytest.mark.parametrize("option", [ImportOptions(image_size=64), ImportOptions(image_processor=Path("x.json"))])
def test_options_of_the_other_program_are_refused(option: ImportOptions, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.yaml"
    path.write_text(ADAPTER_CONFIG)
    with pytest.raises(RecipeError, match=r"whose images timm prepares: leave --image-(size|processor) out"):
        Recipe.imported(f"{path}#dem_deit", option)
    path.write_text(Recipe.named("vit_s").to_yaml())
    with pytest.raises(RecipeError, match="is a recipe and no published configuration"):
        Recipe.imported(path, option)


def imagenet(tmp_path: Path, **fields: object) -> Recipe:
    path, document = tmp_path / "adapter_config.yaml", yaml.safe_load(ADAPTER_CONFIG)
    path.write_text(yaml.safe_dump({"entry": {**document["dem_deit"], **fields}}))
    return Recipe.load(f"{path}#entry")


def test_baselines_of_the_imagenet_program_import(tmp_path: Path) -> None:
    plain = imagenet(tmp_path, do_adaptation=False)
    assert (plain.canonicalizer, plain.augment_layer_id, plain.unaugment_layer_id) == (None, (-100,), (-100,))
    assert plain.backbone == Recipe.named("deit_t").backbone
    unnamed = imagenet(tmp_path, do_adaptation=False, model_name=None)
    assert unnamed.backbone == Recipe.named("resnet50").backbone, "the program's own default"
    cannon = imagenet(
        tmp_path,
        do_adaptation=False,
        do_cannonicalization=True,
        unique_params_limit=5,
        canon_num_layers=2,
        canon_num_channels=[3, 8, 1],
        canon_kernel_sizes=[3, 3, 3],
        can_discrete_vals=[0.8, 1],
    )
    assert cannon.canonicalizer == DiscreteCanonicalizerRecipe(kind="discrete", values=(0.8, 1))
    assert (cannon.augment_layer_id, cannon.unaugment_layer_id) == ((-1,), (-100,))


def test_settings_of_the_imagenet_program(tmp_path: Path) -> None:
    assert imagenet(tmp_path, interpolation_mode="nearest").interpolation_mode == "nearest"
    recipe = imagenet(tmp_path, adapter_channels=[3, 64, 128, 256], inner_epochs=2, deform_resolution="None")
    assert (dem(recipe).channels, dem(recipe).max_iter, recipe.deform_resolution) == ((3, 64, 128), 2, None)
    assert not dem(recipe).antialias
    with pytest.raises(RecipeError, match="Optim needs gradients at inference"):
        imagenet(tmp_path, deep_equlibrium_mode=False)
