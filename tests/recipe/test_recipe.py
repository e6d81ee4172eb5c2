"""Shipped recipes have the published hyperparameters, and a wrong recipe gives an error of one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dec_export.errors import RecipeError
from dec_export.recipe.model import Recipe
from dec_export.recipe.shipped import shipped_recipes
from dec_export.reference.model import preprocessing_of
from tests.helpers.texts import ADAPTER_CONFIG

# arXiv 2508.14187 and its published configuration: coarse resolutions for each family.
PUBLISHED = {"vit": (4, 4), "deit": (10, 4), "swin": (6, 4), "beit": (10, 4)}
# Not published for ImageNet: those of the nearest family that is, a ViT and a staged model.
CHOSEN = {"dinov2": (4, 4), "resnet50": (6, 4), "ser": (4, 4)}
OF_OUR_OWN = {"digits", "digits_segmentation", "digits_ser", "ser_vit_s", "ser_resnet50"}
# Of the published program on transformers; tests/recipe/test_published.py compares them with its configurations.
ON_TRANSFORMERS = {name for name in shipped_recipes() if name.endswith("_transformers")}


def test_the_promised_recipes_ship() -> None:
    promised = {"vit_s", "vit_b", "deit_s", "deit_b", "swin_t", "swin_b", "beit_b", "dinov2_s", "resnet50"}
    assert promised <= set(shipped_recipes())


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - OF_OUR_OWN - ON_TRANSFORMERS))
def test_shipped_recipes_have_the_published_hyperparameters(name: str) -> None:
    recipe = Recipe.named(name)
    assert recipe.name == name
    assert recipe.canonicalizer is not None
    assert recipe.canonicalizer.coarse_resolution == (PUBLISHED | CHOSEN)[name.split("_")[0]]
    assert recipe.canonicalizer.channels == (3, 64, 128)
    assert recipe.canonicalizer.kernel_sizes == (5, 3)
    assert recipe.canonicalizer.pool_rates == (4, 2)
    assert recipe.canonicalizer.image_size == 224
    assert recipe.canonicalizer.max_iter == 5
    segments = recipe.task == "segmentation"
    assert segments == name.endswith("_segmentation")
    assert recipe.augment_layer_id == ((0, 1) if segments else (-1, 0, 1))
    assert recipe.unaugment_layer_id == ((0, 1) if segments else (-100,))


@pytest.mark.parametrize("name", ["vit_s", "deit_s", "swin_t", "digits"])
def test_a_task_chooses_the_recipe_of_a_backbone(name: str) -> None:
    assert Recipe.named(name, "segmentation") == Recipe.named(f"{name}_segmentation")
    assert Recipe.named(name, "classification") == Recipe.named(name)


def test_a_task_that_no_recipe_has_with_the_backbone_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Unknown backbone 'beit_b_segmentation'"):
        Recipe.named("beit_b", "segmentation")


def test_ser_is_the_published_transformer_alone_and_with_dec() -> None:
    alone, canonicalized = Recipe.named("ser_vit_s"), Recipe.named("ser_vit_s_dec")
    assert alone.backbone == canonicalized.backbone
    # arXiv 2603.06693 and its published scripts: the third block is the last without a class token, and the linear
    # classifier reads the last four.
    assert (alone.backbone.cls_insert_layer, alone.backbone.last_blocks) == (3, 4)
    assert alone.canonicalizer is None
    assert (alone.layers, canonicalized.layers) == (0, 2)


def test_ser_resnet_50_is_the_network_alone_on_images_as_the_linear_evaluation_prepares_them() -> None:
    recipe = Recipe.named("ser_resnet50")
    assert (recipe.backbone.family, recipe.canonicalizer, recipe.layers) == ("resnet", None, 0)
    prepared = preprocessing_of(recipe)
    assert (prepared.size, prepared.crop_pct, prepared.interpolation) == (224, 224 / 256, "bicubic")
    assert (prepared.mean, prepared.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"canonicalizer": None}, r"must be \[-100\], found \[-1, 0, 1\]"),
        ({"backbone": {"cls_insert_layer": -1}}, "greater than or equal to 0"),
        ({"backbone": {"cls_insert_layer": 1, "family": "swin"}}, "goes with family 'vit'"),
        ({"backbone": {"last_blocks": 4}}, "go with cls_insert_layer"),
        ({"backbone": {"position_embedding": "sincos2d"}}, "go with cls_insert_layer"),
        ({"backbone": {"cls_insert_layer": 1, "position_embedding": "rope"}}, "'sincos2d' or 'rotary_table'"),
        ({"backbone": {"avgpool_patchtokens": True}}, "avgpool_patchtokens goes with cls_insert_layer"),
        (
            {"backbone": {"cls_insert_layer": 3, "avgpool_patchtokens": True, "last_blocks": 4}},
            "avgpool_patchtokens goes with last_blocks 1, .* found last_blocks 4",
        ),
        ({"backbone": {"cls_insert_layer": 3, "avgpool_patchtokens": 1}}, "valid boolean"),
        ({"backbone": {"tap_norm": True}}, "cls_insert_layer must be 1 or more, found null"),
        ({"backbone": {"tap_norm": True, "cls_insert_layer": 0}}, "cls_insert_layer must be 1 or more, found 0"),
    ],
)
def test_a_late_class_token_that_makes_no_sense_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    document = valid()
    changed = {**document, **changes, "backbone": {**document["backbone"], **changes.get("backbone", {})}}
    with pytest.raises(RecipeError, match=sentence):
        Recipe.load(write(tmp_path, changed))


SEGMENTATION = {"task": "segmentation", "augment_layer_id": [0, 1], "unaugment_layer_id": [0, 1]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "segmentation"}, "segmentation goes with a head"),
        ({"head": {"kind": "linear"}}, "classification has a linear head"),
        ({**SEGMENTATION, "head": {"kind": "linear"}, "unaugment_layer_id": [0]}, "must unwarp what it warps"),
        ({**SEGMENTATION, "head": {"kind": "linear", "taps": [1]}}, "has no taps"),
        ({**SEGMENTATION, "head": {"kind": "dpt", "taps": [1]}}, "two or more taps"),
        ({**SEGMENTATION, "head": {"kind": "dpt", "taps": [2, 1]}}, "ascending order"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Recipe.load(write(tmp_path, {**valid(), **changes}))


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    recipe = Recipe.named(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe


@pytest.mark.parametrize(("typed", "meant"), [("deit-s", "deit_s"), ("diet_s", "deit_s"), ("swin", "swin_")])
def test_an_unknown_backbone_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"Did you mean '{meant}"):
        Recipe.named(typed)


def valid() -> dict:
    return yaml.safe_load(Recipe.named("deit_s").to_yaml())


def write(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, r"unknown field 'surprise'"),
        ({"canonicalizer": {"coarse_resolution": [10, 4], "speed": 3}}, r"unknown field 'canonicalizer.speed'"),
        ({"canonicalizer": {"coarse_resolution": ["ten", 4]}}, r"canonicalizer.coarse_resolution.0.*found 'ten'"),
        ({"canonicalizer": {"coarse_resolution": [3]}}, r"greater than or equal to 4, found 3"),
        ({"canonicalizer": {"coarse_resolution": [True]}}, r"found True"),
        ({"canonicalizer": {"coarse_resolution": []}}, r"at least 1 item"),
        ({"canonicalizer": {"coarse_resolution": [4], "kernel_sizes": [4, 3]}}, r"kernel_sizes must be odd"),
        ({"canonicalizer": {"coarse_resolution": [4], "channels": [3, 8]}}, r"channels name 1 blocks"),
        ({"canonicalizer": {"coarse_resolution": [4], "channels": [1, 8, 8]}}, r"channels must start at 3"),
        (
            {"canonicalizer": {"coarse_resolution": [4], "image_size": 8, "pool_rates": [4, 4]}},
            r"fewer than 2 x 2 pixels",
        ),
        ({"canonicalizer": {"coarse_resolution": [4], "image_size": 8}}, r"fewer than 2 x 2 pixels"),
        ({"canonicalizer": {"coarse_resolution": [4], "channels": [3, 10**9, 8]}}, r"less than or equal to 4096"),
        ({"backbone": {"timm": "x", "family": "vit", "num_classes": 10**12}}, r"num_classes.*1000000"),
        ({"canonicalizer": {"coarse_resolution": [4], "max_iter": 0}}, r"greater than or equal to 1"),
        ({"augment_layer_id": "all"}, r"augment_layer_id.*found 'all'"),
        ({"deform_resolution": [14]}, r"deform_resolution"),
        ({"augment_layer_id": [-2]}, r"a place is -1 .* found -2"),
        ({"augment_layer_id": [0, 0]}, r"name each place once"),
        ({"unaugment_layer_id": [-100, 0]}, r"-100 alone"),
        ({"backbone": {"timm": "x", "family": "custom"}}, r"insertion goes with family 'custom'"),
        (
            {"backbone": {"timm": "x", "family": "custom", "insertion": {"stages": "a..b", "layout": "tokens"}}},
            r"insertion.stages",
        ),
        ({"backbone": {"timm": "x", "family": "cnn"}}, r"backbone.family.*found 'cnn'"),
        ({"backbone": {"family": "vit"}}, r"field 'backbone.timm' is missing"),
        ({"backbone": {"timm": "x", "family": "vit", "timm_args": {"depth": 0}}}, r"timm_args.depth.*found 0"),
        ({"backbone": {"timm": "x", "family": "vit", "timm_args": {"depth": 10**9}}}, r"timm_args.depth.*4096"),
        (
            {"backbone": {"timm": "x", "family": "vit", "timm_args": {"checkpoint_path": "/etc/passwd"}}},
            r"timm_args.checkpoint_path.*patch_size",
        ),
        ({"name": "../evil"}, r"field 'name'"),
        ({"task": "detection"}, r"field 'task'"),
    ],
)
def test_wrong_recipes_say_field_and_value(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(write(tmp_path, {**valid(), **change}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not valid YAML at line"),
        ("- 1", "holds a list"),
        ("", "holds nothing"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("a: !!int abc", "not valid YAML"),
        ("a: !!bool abc", "not valid YAML"),
        ("a: !!timestamp foo", "not valid YAML"),
        ("a: 2020-99-99", "not valid YAML"),
        ("name: &a [*a]", "contains itself"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "aliases",
        ),
        (
            "a0: &a0 {k: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
            "repeat too much|backbone",  # PyYAML from 6.0.4 on merges each key once; then the fields are wrong
        ),
    ],
)
def test_files_that_are_no_recipes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        Recipe.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        Recipe.load(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_text("#" * 2_000_000)
    with pytest.raises(RecipeError, match="larger than"):
        Recipe.load(tmp_path / "large.yaml")


def as_published(name: str) -> Recipe:
    """Return a shipped recipe as the published environment trains it: without antialiasing."""
    recipe = Recipe.named(name)
    assert recipe.deep_equilibrium is not None
    canonicalizer = recipe.deep_equilibrium.model_copy(update={"antialias": False})
    return recipe.model_copy(update={"canonicalizer": canonicalizer})


def test_a_published_configuration_is_the_shipped_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, ADAPTER_CONFIG)
    assert Recipe.load(f"{path}#dem_deit", backbone="deit_s") == as_published("deit_s")
    assert Recipe.load(f"{path}#dem_deit") == as_published("deit_t"), "the published script trains the tiny DeiT"


def test_a_published_file_lists_its_configurations(tmp_path: Path) -> None:
    path = write(tmp_path, ADAPTER_CONFIG)
    with pytest.raises(RecipeError, match=r"none was named.*dem_deit, dem_resnet"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match="'base_vit' is none of them"):
        Recipe.load(f"{path}#base_vit")
    with pytest.raises(RecipeError, match="model_name 'resnet'"):
        Recipe.load(f"{path}#dem_resnet")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'bilinear'", "'bicubic'", "interpolation_mode.*'bilinear' or 'nearest'"),
        ("deep_equlibrium_mode: !!bool True", "deep_equlibrium_mode: !!bool False", "Optim needs gradients"),
        ("inner_epochs: 5", "inner_epochs: many", "max_iter.*found 'many'"),
        ("model_name: 'deit'", "model_name: ['deit']", "model_name"),
    ],
)
def test_published_settings_that_cannot_be_exported(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, ADAPTER_CONFIG.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        Recipe.load(f"{path}#dem_deit")


def test_a_recipe_names_its_own_backbone(tmp_path: Path) -> None:
    path = write(tmp_path, valid())
    with pytest.raises(RecipeError, match="not both"):
        Recipe.load(path, backbone="vit_s")
    with pytest.raises(RecipeError, match="drop '#x'"):
        Recipe.load(f"{path}#x")


def test_the_canonicalizers_size_is_the_one_that_it_sees(tmp_path: Path) -> None:
    """Without scaling, the canonicalizer reads the backbone's image, and image_size has no effect."""
    tiny = {"coarse_resolution": [4], "image_size": 12}
    assert Recipe.load(write(tmp_path, {**valid(), "canonicalizer": {**tiny, "scale_image": False}}))
    with pytest.raises(RecipeError, match="fewer than 2 x 2"):
        Recipe.load(write(tmp_path, {**valid(), "canonicalizer": tiny}))


def test_a_file_with_a_hash_in_its_name_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my#recipe.yaml"
    path.write_text(Recipe.named("vit_s").to_yaml())
    assert Recipe.load(path) == Recipe.named("vit_s")
