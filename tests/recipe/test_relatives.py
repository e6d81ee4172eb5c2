"""The config.json of a published soft equivariant model becomes a recipe, and any other an error of one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dec_export.errors import RecipeError
from dec_export.recipe.model import HeadRecipe, Recipe
from dec_export.recipe.published.base import ImportOptions
from dec_export.recipe.reading import MAX_RECIPE_BYTES
from dec_export.recipe.relatives import SoftEquivariantConfig, read_config
from tests.helpers.commands import refused, run
from tests.helpers.soft_equivariant import config_of

VIT, DINOV2, DINOV3 = "filtered_vit_seg", "filtered_dino2_seg", "filtered_dinov3_seg"
# The ten published models: class, classes of pixels, rotations, softness of the patches and of the positions.
PUBLISHED = [
    (VIT, 21, 4, 0.9, 0.9),
    (VIT, 21, 720, 1.0, 0.9),
    (DINOV2, 21, 4, 0.9, 1.0),
    (DINOV2, 21, 180, 0.9, 1.0),
    (DINOV2, 150, 4, 0.8, 1.0),
    (DINOV2, 150, 180, 0.8, 1.0),
    (DINOV3, 150, 4, 0.1, 0.1),
    (DINOV3, 150, 4, 0.4, 0.4),
    (DINOV3, 150, 4, 0.8, 0.8),
    (DINOV3, 150, 360, 0.8, 1.0),
]


def write(folder: Path, arch: str = VIT, **fields: Any) -> Path:
    own = {"image_size": 512} if arch == DINOV3 else {}
    path = folder / "config.json"
    path.write_text(json.dumps(config_of(arch, **(own | fields))))
    return path


@pytest.mark.parametrize(("arch", "labels", "rotations", "patches", "positions"), PUBLISHED)
def test_every_published_model_becomes_a_recipe(
    arch: str, labels: int, rotations: int, patches: float, positions: float, tmp_path: Path
) -> None:
    fields = {"soft_thresholding": patches, "soft_thresholding_pos": positions, "n_rotations": rotations}
    recipe = Recipe.load(write(tmp_path, arch, num_labels=labels, **fields))
    timm, size, kept = {
        VIT: ("vit_base_patch16_224", 224, 224),
        DINOV2: ("vit_base_patch14_dinov2", 512, 504),
        DINOV3: ("vit_large_patch16_dinov3_qkvb", 512, 512),
    }[arch]
    assert (recipe.task, recipe.canonicalizer, recipe.backbone.num_classes) == ("segmentation", None, labels)
    assert (recipe.backbone.timm, recipe.image_size, recipe.backbone.image_size) == (timm, size, kept)
    assert recipe.head == HeadRecipe(kind="linear")
    # Both sides are resized, and normalised by ImageNet's constants, also for the ViT whose own are 0.5.
    assert (recipe.input.squash, recipe.input.crop_pct, recipe.input.interpolation) == (True, 1.0, "bilinear")
    assert (recipe.input.mean, recipe.input.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert recipe.backbone.layer_norm_eps == (1e-12 if arch == VIT else None)
    assert recipe.backbone.position_embedding == ("rotary_table" if arch == DINOV3 else "learned")


def test_a_folder_is_its_config_and_gives_the_recipe_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "filtered-vit voc"
    folder.mkdir()
    path = write(folder)
    assert Recipe.load(folder) == Recipe.load(path)
    assert Recipe.load(folder).name == "filtered-vit_voc"


def test_a_snapshot_in_a_hubs_cache_has_the_models_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--soft-vit" / "snapshots" / "0a1b2c"
    folder.mkdir(parents=True)
    blob = write(tmp_path)
    (folder / "config.json").symlink_to(blob)
    assert Recipe.load(folder).name == "soft-vit"


def test_a_recipe_of_a_snapshot_is_read_back(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, DINOV2))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_another_image_size_goes_with_positions_that_are_interpolated(tmp_path: Path) -> None:
    recipe, notes = Recipe.imported(write(tmp_path, DINOV2), ImportOptions(image_size=280))
    assert (recipe.image_size, recipe.backbone.image_size, recipe.backbone.preparation) == (280, 280, None)
    assert "280 pixels" in notes[0]
    for arch in (VIT, DINOV3):
        with pytest.raises(RecipeError, match="leave --image-size out"):
            Recipe.imported(write(tmp_path, arch), ImportOptions(image_size=280))


@pytest.mark.parametrize("options", [{"backbone": "vit_s"}, {"image_processor": Path("preprocessor_config.json")}])
def test_options_without_a_use_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave --backbone and --image-processor out"):
        Recipe.imported(write(tmp_path), ImportOptions(**options))


REFUSED = [
    ({"model_type": "vit"}, "a model of type 'vit', expected 'soft_equivariant'"),
    ({"model_type": ["vit"]}, "none that is known"),
    ({"model_arch": "filtered_vit"}, "field 'model_arch'"),
    ({"pretrained_model": "facebook/dinov2-base"}, "must be 'google/vit-base-patch16-224'"),
    ({"pretrained_model": "../../etc/passwd"}, "must be 'google/vit-base-patch16-224'"),
    ({"num_labels": 0}, "field 'num_labels'"),
    ({"num_labels": 21.0}, "field 'num_labels'"),
    ({"num_labels": True}, "field 'num_labels'"),
    ({"soft_thresholding": 1.5}, "field 'soft_thresholding'"),
    ({"soft_thresholding_pos": float("nan")}, "field 'soft_thresholding_pos'"),
    ({"hard_mask": False}, "hard_mask must be true"),
    ({"preserve_norm": True}, "preserve_norm must be false"),
    ({"filter_attention_output": True}, "filter_attention_output must be false"),
    ({"filter_patch_embeddings": False}, "filter_patch_embeddings must be true"),
    ({"group_type": "roto_reflection", "joint_decomposition": False}, "joint_decomposition must be true"),
    ({"group_type": "scaling"}, "field 'group_type'"),
    ({"image_size": 512}, "image_size goes with filtered_dinov3_seg"),
    ({"quantization_config": {}}, "unknown field 'quantization_config'"),
    ({"auto_map": {"AutoModel": 3}}, "field 'auto_map.AutoModel'"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_no_published_model_has_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        Recipe.load(write(tmp_path, **fields))
    assert "config.json" in str(error.value)


HOSTILE = {
    "nested": "[" * 100_000,
    "number": '{"model_type": ' + "9" * 10_000 + "}",
    "list": "[1, 2]",
    "nothing": "",
    "yaml": "model_type: soft_equivariant",
    "large": '{"model_type": "' + "x" * MAX_RECIPE_BYTES + '"}',
    "long": '{"model_type": "' + "x" * 1000 + '"}',
    "latin": '{"model_type": "\xe9"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_an_error_of_one_short_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(HOSTILE[name].encode("latin-1"))
    with pytest.raises(RecipeError) as error:
        Recipe.load(path)
    assert len(str(error.value)) < 400 + len(str(path))


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Cannot read the recipe '.*config.json': No such file"):
        Recipe.load(tmp_path / "config.json")
    with pytest.raises(RecipeError, match="Is a directory"):
        Recipe.load(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(fields=st.dictionaries(st.sampled_from([*config_of(VIT), "image_size", "other"]), VALUES, max_size=4))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_config_is_read_or_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, **fields)
    try:
        config = read_config(path)
    except RecipeError:
        return
    assert isinstance(config, SoftEquivariantConfig)
    assert (config.hard_mask, config.preserve_norm, config.filter_attention_output) == (True, False, False)


def test_the_command_imports_a_snapshot_and_says_what_its_config_does_not(tmp_path: Path) -> None:
    write(tmp_path, DINOV3)
    done = run("recipe", "import", tmp_path, "--out", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "does not say how images are prepared" in done.stderr
    assert Recipe.load(tmp_path / "recipe.yaml").backbone.position_embedding == "rotary_table"


def test_code_that_a_config_names_is_never_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    write(tmp_path, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    assert run("recipe", "import", tmp_path, cwd=tmp_path).returncode == 0
    write(tmp_path, model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    assert "is never executed" in refused("recipe", "import", tmp_path, cwd=tmp_path)
    assert not marker.exists()
