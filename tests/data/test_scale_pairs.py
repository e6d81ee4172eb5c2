"""Images of one scene at several scales are found by the names of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dec_export.data.images import Preprocessing, load_images
from dec_export.data.scale_pairs import LeftOut, group_by_scale, parse, whole_groups
from dec_export.errors import ImageError

PREPROCESSING = Preprocessing(32, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SCALES = ("0.7", "0.9", "1", "1.3")


def scene(name: str, scales: tuple[str, ...] = SCALES, suffix: str = ".JPEG") -> list[str]:
    return sorted(f"{name}_scale_{scale}{suffix}" for scale in scales)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n01440764/ILSVRC2012_val_00025527_scale_0.7.JPEG", (("n01440764", "ILSVRC2012_val_00025527"), 0.7)),
        ("dog_scale_1.png", (("", "dog"), 1.0)),
        ("dog_scale_1.0.Jpg", (("", "dog"), 1.0)),
        ("a_scale_2_scale_1.5.jpg", (("", "a_scale_2"), 1.5)),
        ("deep/class/dog_scale_2.jpeg", (("class", "dog"), 2.0)),
        ("two\nlines_scale_2.jpeg", (("", "two\nlines"), 2.0)),
        ("dog.jpg", None),
        ("_scale_1.jpg", None),
        ("dog_scale_.jpg", None),
        ("dog_scale_big.jpg", None),
        ("dog_scale_-1.jpg", None),
        ("dog_scale_0.jpg", None),
        ("dog_scale_1", None),
        ("x_scale_1.jpg/dog.jpg", None),
    ],
)
def test_a_name_says_scene_and_scale(name: str, expected: tuple[tuple[str, str], float] | None) -> None:
    assert parse(name) == expected


@given(st.permutations([f"{c}/{name}" for c in ("a", "b") for name in (*scene("x"), *scene("y"))]))
def test_scenes_are_the_same_in_every_order(names: list[str]) -> None:
    found = group_by_scale(names)
    assert found.scales == (1.0, 0.7, 0.9, 1.3)
    rows = {tuple(names[place] for place in row) for row in found.places}
    assert rows == {
        tuple(f"{c}/{n}_scale_{scale}.JPEG" for scale in ("1", "0.7", "0.9", "1.3")) for c in "ab" for n in "xy"
    }
    assert not found.left_out.count


def test_scenes_with_other_scales_are_left_out_and_counted() -> None:
    names = [
        *scene("x"),
        *scene("y"),
        *scene("less", ("1", "0.7")),
        *scene("other", ("1", "0.7", "0.8", "1.3")),
        *scene("without", ("0.7", "0.9", "1.1", "1.3")),
        *scene("twice", ("1", "1.0", "0.7")),
        *scene("single", ("1",)),
        "photo.jpg",
    ]
    found = group_by_scale(names)
    assert len(found) == 2
    assert found.left_out == LeftOut(without_scale_1=1, repeated_scale=1, other_scales=2)
    assert found.arrange(np.array(names)).tolist() == [
        [f"{n}_scale_{scale}.JPEG" for scale in ("1", "0.7", "0.9", "1.3")] for n in "xy"
    ]


def test_of_equally_frequent_scales_the_fewer_are_taken() -> None:
    assert group_by_scale([*scene("x"), *scene("y", ("1", "2"))]).scales == (1.0, 2.0)
    assert group_by_scale([*scene("x", ("1", "3")), *scene("y", ("1", "2"))]).scales == (1.0, 3.0)


def test_names_that_say_nothing_give_no_scenes() -> None:
    found = group_by_scale(["a.jpg", "b_scale_2.jpg"])
    assert (len(found), found.scales, found.left_out) == (0, (), LeftOut())


@given(st.integers(1, 12))
def test_no_scene_is_cut(count: int) -> None:
    names = ["a.jpg", *scene("b"), "c.jpg", *scene("d")]
    chosen = whole_groups(names, count)
    assert chosen[:count] == list(range(min(count, len(names))))
    expected = {1: 1, **dict.fromkeys(range(2, 6), 5), 6: 6}.get(count, 10)
    assert chosen == list(range(expected))


def write(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (20 * i, 10, 10)).save(path, format="PNG")


def test_a_folder_of_classes_is_read_if_the_names_say_scales(tmp_path: Path) -> None:
    names = [*scene("n1/x"), *scene("n2/x", suffix=".png")]
    write(tmp_path, [*names, "n1/other.png"])
    (tmp_path / "n1" / "notes_scale_1.txt").write_text("no image")
    whole = load_images(PREPROCESSING, 5, tmp_path)
    assert whole.names == tuple(names), "the second scene is not cut"
    assert load_images(PREPROCESSING, 1, tmp_path).names == tuple(names[:4])
    assert len(group_by_scale(whole.names)) == 2
    assert whole.array[0, 0].mean() < whole.array[7, 0].mean()


def test_images_of_a_flat_folder_come_in_order_of_names_and_complete_scenes(tmp_path: Path) -> None:
    write(tmp_path, ["a.png", *scene("b", suffix=".png"), "c.png", "n1/x_scale_1.png"])
    assert load_images(PREPROCESSING, 2, tmp_path).names == ("a.png", *scene("b", suffix=".png"))


def test_a_folder_of_folders_without_scales_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["n1/a.png", "n1/b.png"])
    with pytest.raises(ImageError, match="holds no image"):
        load_images(PREPROCESSING, 1, tmp_path)
