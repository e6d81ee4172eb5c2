"""The preprocessing in the `args` of a training checkpoint is read, not executed, and compared with the recipe."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from timm.data.config import resolve_data_config

from dec_export.errors import CheckpointError
from dec_export.recipe.model import BackboneRecipe, Recipe
from dec_export.reference.model import create_reference, preprocessing_of
from dec_export.reference.weights.arguments import stored_preprocessing, with_preprocessing_of
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.fitting import published_state_dict

ARGUMENTS = {
    "model": "vit_tiny_patch16_224",
    "img_size": None,
    "input_size": None,
    "in_chans": None,
    "crop_pct": None,
    "interpolation": "",
    "mean": None,
    "std": None,
    "lr": 0.1,
}
RECIPE = Recipe(
    name="small",
    backbone=BackboneRecipe(
        timm="vit_tiny_patch16_224",
        family="vit",
        image_size=32,
        num_classes=3,
        timm_args={"embed_dim": 24, "depth": 1, "num_heads": 3},
    ),
    canonicalizer=None,
    augment_layer_id=(-100,),
)


class ScalarFloat(float):
    """A number of another library, whose name the program leaves in its arguments."""


ScalarFloat.__module__, ScalarFloat.__qualname__ = "ruamel.yaml.scalarfloat", "ScalarFloat"


def write(folder: Path, recipe: Recipe = RECIPE, **arguments: object) -> Path:
    path = folder / "model best.pth.tar"
    state = published_state_dict(create_reference(recipe))
    content = {"epoch": 3, "arch": "x", "state_dict": state, "args": Namespace(**{**ARGUMENTS, **arguments})}
    torch.save(content, path)
    return path


CHANGES = [
    ({"img_size": 48}, "size", "an image size of 48"),
    ({"input_size": [3, 48, 48], "img_size": 64}, "size", "an image size of 48"),
    ({"mean": [0.1, 0.2, 0.3]}, "mean", r"a mean of \[0.1, 0.2, 0.3\]"),
    ({"mean": [0.25]}, "mean", r"a mean of \[0.25, 0.25, 0.25\]"),
    ({"std": (0.2, 0.2, 0.3)}, "std", r"a standard deviation of \[0.2, 0.2, 0.3\]"),
    ({"crop_pct": 0.5}, "crop_pct", "a crop_pct of 0.5"),
    ({"interpolation": "bilinear"}, "interpolation", "an interpolation of bilinear"),
]


@pytest.mark.parametrize(("arguments", "field", "sentence"), CHANGES)
def test_a_difference_is_refused_and_the_import_takes_it(
    arguments: dict[str, object], field: str, sentence: str, tmp_path: Path
) -> None:
    own = {"img_size": 32}
    path = write(tmp_path, **{**own, **arguments})
    with pytest.raises(
        CheckpointError, match=f"was trained with {sentence}, as its args say, .*import the recipe with"
    ):
        load_reference(RECIPE, path)
    taken = with_preprocessing_of(path, RECIPE)
    expected = resolve_data_config(
        {**ARGUMENTS, **own, **arguments}, pretrained_cfg=timm.get_pretrained_cfg("vit_tiny_patch16_224").to_dict()
    )
    found = preprocessing_of(taken)
    assert found.size == expected["input_size"][-1]
    assert (found.mean, found.std) == (tuple(expected["mean"]), tuple(expected["std"]))
    assert (found.crop_pct, found.interpolation) == (expected["crop_pct"], expected["interpolation"])
    assert getattr(found, field) != getattr(preprocessing_of(RECIPE), field)
    assert taken.backbone.image_size == found.size
    load_reference(taken, write(tmp_path, taken, **{**own, **arguments}), strict=True)


def test_arguments_that_say_nothing_mean_timms_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, img_size=32)
    assert with_preprocessing_of(path, RECIPE) == RECIPE
    load_reference(RECIPE, path, strict=True)
    own_mean = RECIPE.input.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    with pytest.raises(CheckpointError, match="was trained with a mean of"):
        load_reference(RECIPE.model_copy(update={"input": own_mean}), path)


def test_the_tag_of_the_trained_model_decides_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, img_size=32, model="vit_tiny_patch16_224.augreg_in21k")
    found = stored_preprocessing(RECIPE, vars(torch_load(path)["args"]), path)
    assert found is not None
    cfg = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    assert (found.mean, found.crop_pct) == (tuple(cfg.mean), cfg.crop_pct)


def torch_load(path: Path) -> dict[str, Namespace]:
    with torch.serialization.safe_globals([Namespace]):
        loaded: dict[str, Namespace] = torch.load(path, weights_only=True)
    return loaded


def test_a_checkpoint_without_arguments_of_timm_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    torch.save({"state_dict": published_state_dict(create_reference(RECIPE)), "args": Namespace(lr=1.0)}, path)
    assert with_preprocessing_of(path, RECIPE) == RECIPE
    load_reference(RECIPE, path, strict=True)


def test_numbers_of_the_programs_yaml_reader_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published program puts `outer_lr` of its YAML file into args.lr, in a class of the library ruamel.yaml."""
    import sys
    from types import ModuleType

    for name in ("ruamel", "ruamel.yaml", "ruamel.yaml.scalarfloat"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["ruamel.yaml.scalarfloat"], "ScalarFloat", ScalarFloat, raising=False)
    path = write(tmp_path, img_size=32, lr=ScalarFloat(1e-7))
    monkeypatch.undo()
    load_reference(RECIPE, path, strict=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"img_size": "large"},
        {"input_size": [3, 224, 192]},
        {"input_size": [1, 32, 32]},
        {"mean": ["a", "b", "c"]},
        {"mean": [0.5, 0.5]},
        {"mean": 3},
        {"std": [1.0, 1.0, 0.0]},
        {"crop_pct": "most"},
        {"crop_pct": 17.0},
        {"interpolation": "random"},
        {"interpolation": ["bilinear"]},
    ],
)
def test_hostile_arguments_are_refused_in_one_sentence(arguments: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path, **arguments)
    for read in (lambda: load_reference(RECIPE, path), lambda: with_preprocessing_of(path, RECIPE)):
        with pytest.raises(
            CheckpointError, match="holds arguments of a training whose preprocessing is not known"
        ) as e:
            read()
        assert "\n" not in str(e.value)
