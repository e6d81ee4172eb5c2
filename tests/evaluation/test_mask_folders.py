"""Folders of images beside folders of masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.layouts.registry import read_data
from tests.helpers import datasets

PNG = datasets.png(np.zeros((4, 6), np.uint8))
PALETTE_PNG = datasets.png(np.ones((4, 6), np.uint8), bytes(range(256)) * 3)


def files(root: Path, **contents: bytes) -> Path:
    """Write files; `__` in a name stands for a slash, and `_dot_` for a dot."""
    for name, content in contents.items():
        datasets.write(root / name.replace("__", "/").replace("_dot_", "."), content)
    return root


def test_masks_of_both_kinds_lie_beside_their_images(tmp_path: Path) -> None:
    data = read_data(datasets.mask_folders(tmp_path, datasets.digit_images(4)), DataOptions(ignored=10))
    assert (data.layout, data.ignored, data.is_labelled) == ("mask-folders", 10, True)
    assert [sample.name for sample in data.samples] == [f"images/{number:06d}.png" for number in range(4)]
    assert [Path(s.mask.name).name for s in data.samples if s.mask is not None] == [f"{n:06d}.png" for n in range(4)]


@pytest.mark.parametrize(("images", "masks"), [("Images", "MASKS"), ("img", "labels"), ("image", "annotations")])
def test_folders_may_have_other_names_nested_files_and_endings(tmp_path: Path, images: str, masks: str) -> None:
    for name in ("a.JPG", "é b/c.png"):
        datasets.write(tmp_path / images / name, PNG)
    for name in ("a_mask.PNG", "é b/c.png"):
        datasets.write(tmp_path / masks / name, PALETTE_PNG)
    data = read_data(tmp_path)
    assert [sample.name for sample in data.samples] == [f"{images}/a.JPG", f"{images}/é b/c.png"]
    assert data.ignored is None


def test_pascal_voc_takes_the_images_that_have_masks(tmp_path: Path) -> None:
    files(
        tmp_path,
        JPEGImages__a_dot_jpg=PNG,
        JPEGImages__b_dot_jpg=PNG,
        SegmentationClass__b_dot_png=PALETTE_PNG,
        SegmentationObject__b_dot_png=PALETTE_PNG,
        Annotations__a_dot_xml=b"<x/>",
    )
    data = read_data(tmp_path)
    assert ([sample.name for sample in data.samples], data.ignored) == (["JPEGImages/b.jpg"], 255)
    assert read_data(tmp_path, DataOptions(ignored=0)).ignored == 0


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({"images__a_dot_jpg": PNG, "masks__b_dot_png": PNG}, r"The mask '.*b.png' has no image of its name: add"),
        (
            {"images__a_dot_jpg": PNG, "images__b_dot_jpg": PNG, "images__c_dot_jpg": PNG, "masks__b_dot_png": PNG},
            r"The image '.*a.jpg' has no mask of its name \(nor have 1 others\): add",
        ),
        ({"images__a_dot_jpg": PNG, "images__a_dot_png": PNG, "masks__a_dot_png": PNG}, "have one name"),
        ({"images__a_dot_jpg": PNG, "masks__x_dot_txt": b""}, "masks' holds no images"),
        (
            {"images__a_dot_jpg": PNG, "masks__a_dot_png": datasets.png(np.zeros((6, 4), np.uint8))},
            "has 4 x 6 pixels, expected those of its image, 6 x 4",
        ),
        (
            {"images__a_dot_jpg": PNG, "masks__a_dot_png": datasets.png(np.zeros((4, 6, 3), np.uint8))},
            "has pixels of mode RGB, expected a palette or grey PNG",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, contents: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_data(files(tmp_path, **contents))


def test_a_damaged_image_is_found_later(tmp_path: Path) -> None:
    files(tmp_path, images__a_dot_jpg=b"x", masks__a_dot_png=PNG, images__b_dot_jpg=PNG, masks__b_dot_png=b"x")
    assert len(read_data(tmp_path)) == 2
