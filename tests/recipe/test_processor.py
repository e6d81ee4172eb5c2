"""The settings of an image processor of transformers become the preparation of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dec_export.errors import RecipeError
from dec_export.recipe.model import Recipe
from dec_export.recipe.preparation import PreparationRecipe
from dec_export.recipe.published.base import ImportOptions
from tests.helpers.published import imported

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
NORMALISED = {"image_mean": MEAN, "image_std": STD}


def read(folder: Path, settings: object, entry: str = "ada_dino_dem") -> Recipe:
    path = folder / "preprocessor_config.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return imported(folder, entry, ImportOptions(image_processor=path))


def preparation(folder: Path, settings: object) -> PreparationRecipe:
    found = read(folder, settings).backbone.preparation
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("settings", "resize", "crop"),
    [
        ({"size": 224}, 224, None),
        ({"size": {"height": 224, "width": 224}, "do_center_crop": False}, 224, None),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, 256, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 256, 224),
        ({"size": 224, "do_center_crop": True, "crop_size": 224}, 224, None),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, 224),
        ({"size": {"shortest_edge": 448}, "crop_pct": 0.875}, 448, None),
        ({"do_resize": False}, 210, None),
    ],
)
def test_sizes(settings: dict[str, object], resize: int, crop: int | None, tmp_path: Path) -> None:
    found = preparation(tmp_path, {**settings, **NORMALISED})
    assert (found.resize, found.crop) == (resize, crop)
    assert read(tmp_path, {**settings, **NORMALISED}).backbone.image_size == (crop or resize)


def test_filter_and_constants(tmp_path: Path) -> None:
    found = preparation(tmp_path, {"size": 224, "resample": 3, **NORMALISED, "image_processor_type": "X"})
    assert (found.filter, found.mean, found.std) == ("bicubic", tuple(MEAN), tuple(STD))
    assert found.antialias
    raw = preparation(tmp_path, {"size": 224, "resample": 2, "do_normalize": False, "do_rescale": False})
    assert (raw.filter, raw.mean, raw.std) == ("bilinear", (0.0,) * 3, (1.0,) * 3)


def test_a_vit_is_resized_without_antialiasing(tmp_path: Path) -> None:
    found = read(tmp_path, {"size": 224, **NORMALISED}, "ada_vit_dem").backbone.preparation
    assert found is not None
    assert not found.antialias


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("not json", "not a JSON file"),
        ("[" * 100_000, "JSON file|larger than"),
        ([1], "holds no mapping"),
        ({"size": 224, "custom_code": "x", **NORMALISED}, "unknown field 'custom_code'"),
        ({"size": {"height": 224, "width": 448}, **NORMALISED}, "size must be the side of a square"),
        ({"size": -1, **NORMALISED}, "size must be the side of a square"),
        ({"size": 224, "resample": 1, **NORMALISED}, "resample must be 2"),
        ({"size": 224, "resample": [2], **NORMALISED}, "resample must be 2"),
        ({"size": 224, "crop_size": 256, **NORMALISED}, "crops 256 pixels of images of 224"),
        ({"size": 224, "do_resize": "yes", **NORMALISED}, "do_resize must be true or false"),
        ({"size": 224, "image_mean": [1, 2], "image_std": STD}, "image_mean must be three numbers"),
        ({"size": 224, "image_mean": MEAN, "image_std": [1, 1, 0]}, "std"),
        ({"size": 224, "crop_pct": 2, **NORMALISED}, "crop_pct must be a number from 0.1 to 1"),
    ],
)
def test_a_hostile_processor_is_refused(settings: object, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=sentence) as refused:
        read(tmp_path, settings)
    assert "\n" not in str(refused.value)


def test_a_processor_of_another_size_does_not_fit_a_fixed_backbone(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"reads images of 224 pixels.*makes 384"):
        read(tmp_path, {"size": 384, **NORMALISED}, "ada_vit_dem")
    with pytest.raises(RecipeError, match="Cannot read the image processor"):
        imported(tmp_path, "vit", ImportOptions(image_processor=tmp_path / "none.json"))
