"""Tables of paths and labels."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.layouts.registry import read_data
from tests.helpers import datasets

READ = [("a.png", 3), ("b c.JPG", 1)]
TABLES = {
    "header.csv": "path,label\na.png,3\nb c.JPG,1\n",
    "no_header.csv": "a.png,3\nb c.JPG,1\n",
    "windows.csv": "\ufeffpath,label\r\na.png,3\r\nb c.JPG,1\r\n",
    "windows_no_header.csv": "\ufeffa.png,3\r\nb c.JPG,1\r\n",
    "label_first.csv": "label,path\n3,a.png\n1,b c.JPG\n",
    "label_first_no_header.csv": "3,a.png\n1,b c.JPG\n",
    "quoted.csv": '"path","label"\n"a.png","3"\n"b c.JPG","1"\n',
    "more.csv": "id,width,target,filename\n7,64,3,a.png\n8,64,1,b c.JPG\n",
    "semicolons.csv": "path;label\na.png;3\nb c.JPG;1\n",
    "blank_lines.csv": "\n\na.png,3\n\nb c.JPG,1\n\n",
    "spaces.csv": "path, label\na.png, 3\nb c.JPG, 1\n",
    "floats.csv": "path,label\na.png,3.0\nb c.JPG,1.0\n",
    "tabs.tsv": "path\tlabel\na.png\t3\nb c.JPG\t1\n",
    "tabs.csv": "a.png\t3\nb c.JPG\t1\n",
    "list.txt": "a.png 3\nb c.JPG 1\n",
    "commas.txt": "a.png,3\nb c.JPG,1",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b c.JPG", 'é "x", y.png', "sub/a.png"):
        datasets.write(tmp_path / name, b"")
    return tmp_path


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    return datasets.write(folder / name, text.encode())


@pytest.mark.parametrize("name", TABLES)
def test_every_form_of_a_table_is_read(folder: Path, name: str) -> None:
    data = read_data(write(folder, TABLES[name], name))
    assert [(sample.name, sample.label) for sample in data.samples] == READ
    assert (data.layout, data.classes) == ("table", ())


def test_quotes_unicode_folders_and_absolute_paths(folder: Path) -> None:
    text = f'path,label\n"é ""x"", y.png",0\nsub/a.png,1\na.png,2\n{folder / "b c.JPG"},3\n'
    data = read_data(write(folder, text))
    assert [sample.label for sample in data.samples] == [0, 1, 2, 3]
    assert all(Path(sample.image.name).is_file() for sample in data.samples)
    assert len({sample.name for sample in data.samples}) == 4


def test_names_of_classes_are_numbered_alphabetically_or_by_an_index(folder: Path) -> None:
    path = write(folder, "path,label\na.png,hot dog\nb c.JPG,cat\n")
    data = read_data(path)
    assert ([sample.label for sample in data.samples], data.classes) == ([1, 0], ("cat", "hot dog"))
    index = datasets.write(folder / "index.json", b'["emu", "hot dog", "cat"]')
    data = read_data(path, DataOptions(class_index=index))
    assert ([sample.label for sample in data.samples], data.classes) == ([1, 2], ("emu", "hot dog", "cat"))


def test_numbers_with_an_index_are_numbers(folder: Path) -> None:
    index = datasets.write(folder / "index.txt", b"emu\ndog\ncat\n")
    path = write(folder, "path,label\na.png,2\nb c.JPG,0\n")
    data = read_data(path, DataOptions(class_index=index))
    assert ([sample.label for sample in data.samples], data.classes) == ([2, 0], ("emu", "dog", "cat"))


@pytest.mark.parametrize("text", ["path\na.png\nb c.JPG\n", "a.png\nb c.JPG\n"])
def test_a_list_of_paths_has_no_labels(folder: Path, text: str) -> None:
    data = read_data(write(folder, text))
    assert [sample.label for sample in data.samples] == [None, None]
    assert not data.is_labelled


def test_a_missing_image_among_others_is_one_that_cannot_be_read(folder: Path) -> None:
    data = read_data(write(folder, "a.png,0\nlost.png,1\n"))
    with pytest.raises(DataError, match="No such file"):
        data.samples[1].decode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "names no images"),
        (b"path,label\n", "names no images"),
        (b"\xff\xfep\0a\0", "is not text in UTF-8"),
        (b'path,label\n"a.png,3\n', "is not a table of paths and labels"),
        (b"a.png,3\nb c.JPG\n", "Row 2 of .* has 1 cells, fewer than the first"),
        (b"a.png,3\nb c.JPG,\n", "Row 2 of .* has no label for 'b c.JPG'"),
        (b"a.png,3\n,1\n", "Row 2 of .* names no image"),
        (b"a.png,3\nb c.JPG,-1\n", "Row 2 of .* has the label -1, expected 0 or more"),
        (b"a.png,3\nb c.JPG,1\na.png,2\n", "Rows 1 and 3 of .* both name 'a.png'"),
        (b"x/1.png,3\nx/2.png,1\n", "None of the images that .* names exists, such as '.*1.png'"),
        (b"a.png,1\nb\0.png,2\n", "t.csv"),
    ],
)
def test_a_wrong_table_is_one_sentence(folder: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as raised:
        read_data(datasets.write(folder / "t.csv", content))
    assert "\n" not in str(raised.value)


def test_labels_beyond_the_index_are_one_sentence(folder: Path) -> None:
    index = datasets.write(folder / "index.txt", b"emu\ndog\n")
    with pytest.raises(DataError, match=r"Row 1 of .* has the label 3, expected at most 1"):
        read_data(write(folder, TABLES["no_header.csv"]), DataOptions(class_index=index))


@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_table_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = datasets.write(tmp_path_factory.getbasetemp() / "any" / "t.csv", b"a.png,0\n" + content)
    datasets.write(path.parent / "a.png", b"")
    with contextlib.suppress(DataError):
        assert read_data(path).samples
