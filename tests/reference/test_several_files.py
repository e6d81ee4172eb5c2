"""The several files of the published program on transformers are read together, and wrong combinations are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dec_export.errors import CheckpointError
from dec_export.recipe.model import CanonicalizerRecipe, Recipe
from dec_export.reference.weights.checkpoint import file_sha256, load_reference
from dec_export.reference.weights.files import read_content
from dec_export.reference.weights.layout import Checkpoint
from dec_export.reference.weights.layouts.transformers import TRANSFORMERS as LAYOUT
from tests.helpers.published import TRANSFORMERS, beside, formula_state, small_recipe, write_files

CASE, PLAIN = "vit_cls_dem", "vit_plain"


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    torch.save(change(dict(torch.load(path, weights_only=True))), path)


def refused(recipe: Recipe, path: Path, second: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as refusal:
        load_reference(recipe, path, canonicalizers=second)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    return sentence


def test_the_canonicalizers_are_found_beside_the_backbone(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    assert " " in path.name
    model, source = load_reference(recipe, path, strict=True)
    second = beside(path, "_surrogate")
    assert (source.file, source.canonicalizer_file) == (path.name, second.name)
    assert source.canonicalizer_sha256 == file_sha256(second)
    assert f"{path.name} and {second.name}; dropped: pooler.dense.* (2)" in source.detail
    elsewhere = tmp_path / "other folder" / "mine.pth"
    elsewhere.parent.mkdir()
    shutil.move(second, elsewhere)
    again, moved = load_reference(recipe, path, canonicalizers=elsewhere)
    assert moved.canonicalizer_file == "mine.pth"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    second = beside(path, "_surrogate")
    second.rename(tmp_path / "hidden.pth")
    assert "name the second file with --canonicalizer-checkpoint" in refused(recipe, path)
    assert "There is no checkpoint file" in refused(recipe, path, tmp_path / "none.pth")
    (tmp_path / "hidden.pth").rename(second)
    sentence = refused(recipe, second)
    assert "holds only canonicalizers" in sentence
    assert f"give the backbone's file '{path.name}' as --checkpoint" in sentence
    with pytest.raises(CheckpointError, match="without a --checkpoint"):
        load_reference(recipe, None, canonicalizers=second)


def test_start_values_are_no_checkpoint(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    for ending in ("_phi_x", "_phi_y"):
        sentence = refused(recipe, beside(path, ending))
        assert "a list of 3 start values of phi" in sentence
        assert f"'{path.name}'" in sentence
    assert "start values of phi" in refused(recipe, path, beside(path, "_phi_x"))
    torch.save(None, beside(path, "_phi_x"))
    assert "holds nothing" in refused(recipe, beside(path, "_phi_x"))


def test_files_of_different_runs_are_refused_by_the_first_difference(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    second = beside(path, "_surrogate")
    rewrite(second, lambda state: {**state, "module_list.0.0.conv1.weight": torch.ones(16, 3, 3, 3)})
    sentence = refused(recipe, path)
    assert sentence.startswith(f"'{second}' does not fit")
    assert "'module_list.0.0.conv1.weight' is 16x3x3x3, expected 32x3x3x3" in sentence
    write_files(tmp_path, CASE)
    rewrite(second, lambda state: {key: value for key, value in state.items() if not key.startswith("module_list.2")})
    assert "'module_list.2.0.conv1.weight' 32x3x3x3 is missing" in refused(recipe, path)
    write_files(tmp_path, CASE)
    torch.save([torch.ones(1, 6, 5)] * 2, beside(path, "_phi_y"))
    sentence = refused(recipe, path)
    assert f"'{beside(path, '_phi_y')}', beside the checkpoint, belongs to a model" in sentence
    assert "1x6x5, 1x6x5, expected 1x4x3, 1x4x3, 1x4x3" in sentence
    torch.save(None, beside(path, "_phi_y"))
    assert "start values of no phi" in refused(recipe, path)


def test_a_checkpoint_for_another_image_size_or_model_is_refused_under_its_own_keys(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, PLAIN), write_files(tmp_path, PLAIN)
    rewrite(path, lambda state: {**state, "model.embeddings.position_embeddings": torch.ones(1, 257, 48)})
    expected = (
        "'model.embeddings.position_embeddings' is 1x257x48, expected 1x197x48 (it was trained on images of another"
    )
    assert expected in refused(recipe, path)
    write_files(tmp_path, PLAIN)
    rewrite(path, lambda state: {**state, "classifier.weight": torch.ones(10, 48)})
    assert "'classifier.weight' is 10x48, expected 7x48" in refused(recipe, path)
    write_files(tmp_path, PLAIN)
    attention = "model.encoder.layer.0.attention.attention"
    rewrite(path, lambda state: {key: value for key, value in state.items() if key != f"{attention}.key.weight"})
    sentence = refused(recipe, path)
    assert f"'{attention}.{{query,key,value}}.weight' 144x48 is missing" in sentence
    assert f"'{attention}.query.weight' 48x48 is not expected" in sentence


def test_a_second_file_without_use_is_refused_or_mentioned(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    plain = recipe.model_copy(
        update={"canonicalizer": None, "augment_layer_id": (-100,), "unaugment_layer_id": (-100,)}
    )
    second = beside(path, "_surrogate")
    assert "has no deep equilibrium canonicalizers" in refused(plain, path, second)
    _, source = load_reference(plain, path)
    assert f"{second.name} beside it is not used" in source.detail
    assert source.canonicalizer_file is None
    assert "expected only canonicalizers" in refused(recipe, path, path)


def test_energies_of_optim_are_refused_with_the_reason(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    torch.save({"module_list.0.0.conv.weight": torch.ones(4, 3, 3, 3)}, beside(path, "_surrogate"))
    assert "energies of Optim, which needs gradients at inference" in refused(recipe, path)


def test_timms_epsilon_is_refused_for_models_of_transformers(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, PLAIN), write_files(tmp_path, PLAIN)
    backbone = recipe.backbone.model_copy(update={"layer_norm_eps": None})
    assert "set backbone.layer_norm_eps to 1.0e-12" in refused(recipe.model_copy(update={"backbone": backbone}), path)


def test_a_hostile_file_of_canonicalizers_executes_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "executed"),))

    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    for ending in ("_surrogate", "_phi_x"):
        write_files(tmp_path, CASE)
        torch.save({"module_list.0": Hostile()}, beside(path, ending))
        assert "nothing in it was executed" in refused(recipe, path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", TRANSFORMERS["backbones"])
def test_every_tensor_of_a_backbone_is_used_or_counted(name: str, tmp_path: Path) -> None:
    state = formula_state(TRANSFORMERS["backbones"][name])
    path = tmp_path / "a backbone.pth"
    torch.save(state, path)
    found = LAYOUT.read(Checkpoint(read_content(path), path))
    used = sum(value.numel() for value in found.weights.values())
    unused = [key for key in state if "pooler.dense" in key or "mask_token" in key or key.endswith("position_index")]
    assert used == sum(value.numel() for key, value in state.items() if key not in unused)
    assert not [key for key in found.weights if key.startswith("model.")]
    # Computed indices are left out before the layout sees them, as those of timm.
    assert sum(found.dropped.values()) == sum(not key.endswith("position_index") for key in unused)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, PLAIN), write_files(tmp_path, PLAIN)
    rewrite(path, lambda state: {**state, "model.encoder.layer.0.extra.weight": torch.ones(3)})
    assert "'model.encoder.layer.0.extra.weight' 3 is not expected" in refused(recipe, path)


def test_a_classical_canonicalizer_keeps_its_wrapper_apart(tmp_path: Path) -> None:
    """The published wrapper puts `model.` before the keys of the class that it wraps."""
    inner = TRANSFORMERS["backbones"]["vit"] | TRANSFORMERS["cases"][PLAIN]["head"]
    state = {f"model.{key}": value for key, value in formula_state(inner).items()}
    own = {"conv_layers.0.weight": torch.ones(4, 3, 3, 3), "deform_params_x": torch.ones(64, 8, 7)}
    path = tmp_path / "wrapped.pth"
    torch.save({**state, **own}, path)
    found = LAYOUT.read(Checkpoint(read_content(path), path)).weights
    assert {key for key in found if key.startswith("DEM.")} == {"DEM.conv_layers.0.weight", "DEM.deform_params_x"}
    assert "head.weight" in found
    assert "blocks.3.attn.qkv.weight" in found


def test_a_canonicalizer_of_another_size_differs_from_the_start_values(tmp_path: Path) -> None:
    recipe, path = small_recipe(tmp_path, CASE), write_files(tmp_path, CASE)
    other = CanonicalizerRecipe(
        coarse_resolution=(6, 4, 4), channels=(3, 32, 64), kernel_sizes=(3, 3), pool_rates=(2, 2)
    )
    sentence = refused(recipe.model_copy(update={"canonicalizer": other}), path)
    assert "expected 1x6x5, 1x4x3, 1x4x3 by coarse_resolution" in sentence
