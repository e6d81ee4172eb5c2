"""Folders of classes, of scenes at several scales, of corruptions, and without labels."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from dec_export.errors import DataError, ImageError
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.layouts.class_index import number_classes
from dec_export.evaluation.layouts.registry import LAYOUTS, layout_names, read_data
from tests.helpers import datasets

NOTHING = b""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.class_folders(tmp_path_factory.mktemp("data") / "tree", datasets.digit_images(20))


def files(root: Path, *names: str) -> Path:
    for name in names:
        datasets.write(root / name, NOTHING)
    return root


def test_every_layout_is_recognised_by_names_alone(tmp_path: Path) -> None:
    examples = {
        "table": files(tmp_path / "a", "labels.CSV") / "labels.CSV",
        "shards": files(tmp_path / "b", "x-0.tar"),
        "mask-folders": files(tmp_path / "c", "Images/a.jpg", "Masks/a.png"),
        "scaled-folders": files(tmp_path / "d", "cat/a_scale_0.7.JPEG", "cat/a_scale_1.JPEG"),
        "corrupted-folders": files(tmp_path / "e", "fog/3/cat/a.JPEG"),
        "class-folders": files(tmp_path / "f", "cat/a.JPEG", "dog/b.png"),
        "flat-folder": files(tmp_path / "g", "a.JPEG"),
    }
    assert tuple(examples) == layout_names()
    for name, path in examples.items():
        assert next(layout.name for layout in LAYOUTS if layout.recognises(path)) == name


def test_class_folders_number_classes_alphabetically_and_keep_empty_ones(tree: Path) -> None:
    data = read_data(tree)
    assert (data.layout, len(data), data.classes) == ("class-folders", 20, datasets.CLASSES)
    assert all(sample.label == int(sample.name[len("digit_")]) for sample in data.samples)
    assert [sample.name for sample in data.samples] == sorted(sample.name for sample in data.samples)
    assert data.samples[0].decode().size == (64, 64)


def test_suffixes_in_capitals_blanks_unicode_and_nested_folders_are_read(tmp_path: Path) -> None:
    files(
        tmp_path, "hot dog/a b.JPG", "hot dog/2020/été/x.Png", "größe/a b.jpeg", "größe/notes.txt", "größe/.hidden.png"
    )
    data = read_data(tmp_path)
    assert [(sample.name, sample.label) for sample in data.samples] == [
        ("größe/a b.jpeg", 0),
        ("hot dog/a b.JPG", 1),
        ("hot dog/2020/été/x.Png", 1),
    ]


def test_only_nested_images_still_make_a_class(tmp_path: Path) -> None:
    assert [s.label for s in read_data(files(tmp_path, "a/x/1.png", "b/y/1.png")).samples] == [0, 1]


def test_links_are_followed_once_and_broken_ones_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    files(tmp_path / "data", "a/1.png", "b/1.png")
    (tmp_path / "data" / "a" / "again").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "2.png").symlink_to(tmp_path / "data" / "b" / "1.png")
    (tmp_path / "data" / "b" / "lost.png").symlink_to(tmp_path / "nowhere")
    data = read_data(tmp_path / "data")
    assert [sample.name for sample in data.samples] == ["a/1.png", "a/2.png", "b/1.png", "b/lost.png"]
    with pytest.raises(DataError, match=r"Cannot read '.*lost.png': No such file"):
        data.samples[3].decode()


def test_a_linked_data_set_has_the_same_names(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert [s.name for s in read_data(tmp_path / "link").samples] == [s.name for s in read_data(tree).samples]


def test_names_that_are_not_unicode_can_be_printed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    Path(os.fsdecode(bytes(folder) + b"/\xff.png")).write_bytes(NOTHING)
    files(tmp_path, "b/1.png")
    data = read_data(tmp_path)
    assert data.samples[0].name == "a/\\xff.png"
    with pytest.raises(ImageError) as raised:
        data.samples[0].decode()
    assert str(raised.value).encode()


def test_the_parts_of_a_data_set_are_not_its_classes(tmp_path: Path) -> None:
    files(tmp_path, "train/cat/1.png", "val/cat/1.png")
    with pytest.raises(DataError, match=r"holds the parts of a data set, not classes: give one of them"):
        read_data(tmp_path)


@pytest.mark.parametrize("what", ["nothing", "empty folders", "other files"])
def test_folders_without_images_are_one_sentence(tmp_path: Path, what: str) -> None:
    if what == "empty folders":
        (tmp_path / "a" / "b").mkdir(parents=True)
    if what == "other files":
        files(tmp_path, "a/x.gif", "notes.md")
    with pytest.raises(DataError, match="holds no images: expected JPEG or PNG files"):
        read_data(tmp_path)


@pytest.mark.parametrize("name", layout_names())
def test_a_layout_that_does_not_fit_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as raised:
        read_data(tmp_path / "empty", DataOptions(layout=name))
    assert "\n" not in str(raised.value)


def test_other_paths_and_layouts_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data at"):
        read_data(tmp_path / "nothing")
    with pytest.raises(DataError, match="Unknown layout 'folders', expected one of table"):
        read_data(tmp_path, DataOptions(layout="folders"))
    with pytest.raises(DataError, match="has no layout that is known"):
        read_data(datasets.write(tmp_path / "x.parquet", NOTHING))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    files(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    (tmp_path / "a" / "3.png").mkdir()
    assert [sample.name for sample in read_data(tmp_path).samples] == ["a/1.png"]


# --- the numbers of classes ---

INDEXES = {
    "plain.txt": "n01\nn02\nn03\n",
    "synsets.txt": "n01 tench, Tinca tinca\nn02 goldfish\n\nn03 great white shark\n",
    "numbers_first.txt": "2 n03\n0 n01\n1 n02\n",
    "numbers_last.txt": "n03 2\nn01 0\nn02 1\n",
    "windows.txt": "\ufeffn01 tench\r\nn02 goldfish\r\nn03 shark\r\n",
    "pairs.json": json.dumps({"0": ["n01", "tench"], "1": ["n02", "goldfish"], "2": ["n03", "shark"]}),
    "names.json": json.dumps({"0": "n01", "1": "n02", "2": "n03"}),
    "numbers.json": json.dumps({"n03": 2, "n01": 0, "n02": 1}),
    "list.json": json.dumps(["n01", "n02", "n03"]),
    "list_of_pairs.json": "\ufeff" + json.dumps([["n01", "tench"], ["n02", "goldfish"], ["n03", "shark"]]),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_class_index_numbers_folders_of_which_some_are_missing(tmp_path: Path, name: str) -> None:
    index = datasets.write(tmp_path / name, INDEXES[name].encode())
    files(tmp_path / "data", "n03/a.jpg", "n02/b.jpg")
    data = read_data(tmp_path / "data", DataOptions(class_index=index))
    assert [sample.label for sample in data.samples] == [1, 2]
    assert len(data.classes) == 3


def test_names_of_classes_may_have_blanks_or_be_repeated(tmp_path: Path) -> None:
    index = datasets.write(tmp_path / "i.txt", b"crane\nhot dog\nhot pot\ncrane\n")
    assert number_classes(["hot dog", "hot pot"], index)[0] == {"hot dog": 1, "hot pot": 2}
    with pytest.raises(DataError, match="names 'crane' twice: give each class one line"):
        number_classes(["crane", "hot dog"], index)


def test_names_of_an_index_of_pairs_number_folders_too(tmp_path: Path) -> None:
    index = datasets.write(tmp_path / "i.json", INDEXES["pairs.json"].encode())
    assert number_classes(["goldfish", "shark"], index)[0] == {"goldfish": 1, "shark": 2}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("i.txt", b"n01\nn02\n", "has no class 'n03', which is a class of the data"),
        ("i.txt", b"\n \n", "names no class"),
        ("i.txt", b"\xff\xfen\0", "is not text in UTF-8"),
        ("i.json", b"{", "is not valid JSON"),
        ("i.json", b"[" * 100_000, "is not valid JSON"),
        ("i.json", b'{"0": "n01", "2": "n03"}', "must be a list of names"),
        ("i.json", b'{"n01": 0, "n03": 0}', "must be a list of names"),
        ("i.json", b'{"n01": true, "n03": false}', "must be a list of names"),
        ("i.json", b"[]", "must be a list of names"),
        ("nothing.txt", None, "Cannot read the class index"),
    ],
)
def test_a_wrong_class_index_is_one_sentence(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        datasets.write(tmp_path / name, content)
    with pytest.raises(DataError, match=sentence):
        number_classes(["n01", "n03"], tmp_path / name)


# --- scales and corruptions ---


def test_scaled_folders_say_scale_and_scene(tmp_path: Path) -> None:
    data = read_data(datasets.scaled_folders(tmp_path, 4))
    assert (data.layout, len(data)) == ("scaled-folders", 12)
    sample = data.samples[0]
    assert sample.groups == {"scale": "0.7", "scene": sample.name.split("_scale")[0]}
    assert {s.groups["scale"] for s in data.samples} == {"0.7", "1", "1.3"}
    assert all(s.name.startswith(data.classes[s.label or 0] + "/") for s in data.samples)


def test_a_name_without_a_scale_among_others_is_one_sentence(tmp_path: Path) -> None:
    files(tmp_path, "cat/a_scale_1.0.jpeg", "dog/b.jpeg")
    with pytest.raises(DataError, match=r"The name of 'dog/b.jpeg' does not say a scale"):
        read_data(tmp_path)
    assert len(read_data(tmp_path, DataOptions(layout="class-folders"))) == 2


def test_corrupted_folders_say_corruption_and_severity(tmp_path: Path) -> None:
    data = read_data(datasets.corrupted_folders(tmp_path, datasets.digit_images(3)))
    assert (data.layout, len(data)) == ("corrupted-folders", 12)
    assert {tuple(s.groups.values()) for s in data.samples} == {
        (corruption, severity) for corruption in ("contrast", "fog") for severity in ("1", "3")
    }
    assert len({s.name for s in data.samples}) == 12


def test_corruptions_may_lie_in_folders_of_kinds_and_lack_classes(tmp_path: Path) -> None:
    files(tmp_path, "noise/shot_noise/1/cat/a.JPEG", "noise/shot_noise/2/dog/a.JPEG", "weather/fog/5/emu/a.JPEG")
    data = read_data(tmp_path)
    assert data.classes == ("cat", "dog", "emu")
    assert [(s.groups["corruption"], s.groups["severity"], s.label) for s in data.samples] == [
        ("shot_noise", "1", 0),
        ("shot_noise", "2", 1),
        ("fog", "5", 2),
    ]


def test_a_corrupted_image_outside_a_class_is_one_sentence(tmp_path: Path) -> None:
    files(tmp_path, "fog/1/cat/a.JPEG", "fog/1/b.JPEG")
    with pytest.raises(DataError, match=r"b.JPEG' lies in no folder of a class"):
        read_data(tmp_path)


def test_a_corruption_of_two_kinds_is_one_sentence(tmp_path: Path) -> None:
    files(tmp_path, "a/fog/1/cat/a.JPEG", "b/fog/1/cat/a.JPEG")
    with pytest.raises(DataError, match="The corruption 'fog' has two folders"):
        read_data(tmp_path)


def test_a_flat_folder_has_no_labels(tmp_path: Path, tree: Path) -> None:
    shutil.copytree(tree / "digit_1", tmp_path / "flat")
    files(tmp_path / "flat", "more/x.jpg")
    data = read_data(tmp_path / "flat")
    assert data.layout == "flat-folder"
    assert data.samples[-1].name == "more/x.jpg"
    assert not data.is_labelled
