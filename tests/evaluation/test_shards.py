"""Tar archives of WebDataset, and archives that were made to harm."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.layouts.registry import read_data
from tests.helpers import datasets

PNG = datasets.png(np.zeros((4, 4), np.uint8))


def archive(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_shards_of_the_own_writer_are_read_where_they_lie(tmp_path: Path) -> None:
    images = datasets.digit_images(20)
    data = read_data(datasets.shards(tmp_path / "shards", images))
    assert (data.layout, data.classes) == ("shards", ())
    assert [sample.label for sample in data.samples] == images.labels.tolist()
    assert data.samples[9].name == "digits-000001.tar/000009.png"
    for sample, pixels in zip(data.samples, images.pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(sample.decode())[..., 0], pixels)
    assert sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == [".tar"] * 3


def test_patterns_and_single_archives_have_the_names_of_the_folder(tmp_path: Path) -> None:
    root = datasets.shards(tmp_path, datasets.digit_images(20))
    names = [sample.name for sample in read_data(root).samples]
    assert [s.name for s in read_data(root / "digits-{000000..000002}.tar").samples] == names
    assert [s.name for s in read_data(root / "digits-00000{0,2}.tar").samples] == names[:8] + names[16:]
    assert [s.name for s in read_data(root / "digits-000001.tar").samples] == names[8:16]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("digits-{000000..000009}.tar", "There is no archive '.*digits-000003.tar'"),
        ("digits-{5..0}.tar", "must count up"),
        ("digits-{0..99999999999}.tar", "must count up"),
        ("other.tar", "There is no archive '.*other.tar'"),
    ],
)
def test_archives_that_do_not_exist_are_one_sentence(tmp_path: Path, pattern: str, sentence: str) -> None:
    datasets.shards(tmp_path, datasets.digit_images(20))
    with pytest.raises(DataError, match=sentence):
        read_data(tmp_path / pattern)


@pytest.mark.parametrize(
    ("extension", "content"),
    [("cls", b"3"), ("CLS", b" 3\r\n"), ("json", b'{"label": 3, "w": 1}'), ("json", b'{"cls": "3"}'), ("json", b"3")],
)
def test_labels_have_several_forms(tmp_path: Path, extension: str, content: bytes) -> None:
    path = archive(tmp_path / "x.TAR", [("d/a b.JPEG", PNG), (f"d/a b.{extension}", content), ("d/a b.txt", b"?")])
    (sample,) = read_data(path).samples
    assert (sample.label, sample.name) == (3, "x.TAR/d/a b.JPEG")


def test_names_of_classes_masks_and_keys(tmp_path: Path) -> None:
    members = [("a.jpg", PNG), ("a.cls", b"dog"), ("b.jpg", PNG), ("b.cls", b"cat"), ("README", b"?")]
    path = archive(tmp_path / "x.tar", members)
    data = read_data(path)
    assert ([s.label for s in data.samples], data.classes) == ([1, 0], ("cat", "dog"))
    index = datasets.write(tmp_path / "i.txt", b"emu\ndog\ncat\n")
    assert [s.label for s in read_data(path, DataOptions(class_index=index)).samples] == [1, 2]
    masks = archive(tmp_path / "m.tar", [("a.jpg", PNG), ("a.seg.png", PNG)])
    (sample,) = read_data(masks, DataOptions(ignored=255)).samples
    assert sample.mask is not None
    assert sample.mask.name.endswith("m.tar:a.seg.png")


def test_archives_without_labels_are_for_predictions(tmp_path: Path) -> None:
    assert not read_data(archive(tmp_path / "x.tar", [("a.jpg", PNG), ("b.jpg", PNG)])).is_labelled


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([], "holds no images"),
        ([("a.txt", b"?")], "holds no images"),
        ([("a.jpg", PNG), ("a.cls", b"1"), ("b.jpg", PNG)], "b.jpg' has no label"),
        ([("a.jpg", PNG), ("a.cls", b"-1")], "holds the class -1, expected 0 or more"),
        ([("a.jpg", PNG), ("a.cls", b"")], "holds no class"),
        ([("a.jpg", PNG), ("a.json", b'{"label": true}')], "holds no class"),
        ([("a.jpg", PNG), ("a.json", b'{"label": 1.5}')], "holds no class"),
        ([("a.jpg", PNG), ("a.json", b"{")], "cannot be read as a label"),
        ([("a.jpg", PNG), ("a.json", b"[" * 100_000)], "cannot be read as a label"),
        ([("a.jpg", PNG), ("a.cls", b"\xff")], "cannot be read as a label"),
        ([("a.jpg", PNG), ("a.cls", b"1" * 2_000_000)], "too many for a label"),
        ([("a.jpg", PNG), ("a.cls", b"1"), ("a.jpg", PNG)], "not the only file of its kind"),
        ([("a.jpg", PNG), ("a.png", PNG), ("a.cls", b"1")], "not the only file of its kind"),
        ([("a.jpg", PNG), ("a.cls", b"1"), ("a.cls", b"2")], "not the only file of its kind"),
    ],
)
def test_wrong_samples_are_one_sentence(tmp_path: Path, members: Sequence[tuple[str, bytes]], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_data(archive(tmp_path / "x.tar", members))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.{kind}"])
def test_compressed_archives_are_refused_in_one_sentence(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix.format(kind=kind)}"
    with tarfile.open(path, f"w:{kind}") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    for data in (path, tmp_path):
        with pytest.raises(DataError, match="is compressed, so its images cannot be read one by one"):
            read_data(data)


def test_links_devices_and_names_of_other_folders_have_no_effect(tmp_path: Path) -> None:
    secret = datasets.write(tmp_path / "secret.png", PNG)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as file:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"link{number}.png")
            info.type, info.linkname = kind, str(secret)
            file.addfile(info)
        for name in ("/etc/a.png", "../../b.png", "good.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            file.addfile(info, io.BytesIO(PNG))
    names = [sample.name for sample in read_data(path).samples]
    assert names == ["x.tar//etc/a.png", "x.tar/../../b.png", "x.tar/good.png"]
    assert all(sample.decode().size == (4, 4) for sample in read_data(path).samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.png", "x.tar"]


@pytest.mark.parametrize("size", [1 << 40, 7_000, -512, -(1 << 20)])
def test_sizes_that_lie_are_one_sentence(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    path = datasets.write(tmp_path / "x.tar", header + PNG.ljust(512, b"\0") + bytes(1024))
    with pytest.raises(DataError, match="damaged"):
        read_data(path)


def test_an_archive_that_is_cut_short_is_one_sentence_before_and_while_it_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", [("a.png", PNG), ("b.png", bytes(5000))])
    data = read_data(path)
    path.write_bytes(path.read_bytes()[:1800])
    with pytest.raises(DataError, match="damaged"):
        read_data(path)
    with pytest.raises(DataError, match=r"x.tar:b.png' is cut short"):
        data.samples[1].image.read()


@pytest.mark.parametrize("content", [b"", b"x" * 600, bytes(100), b"\xff" * 2048])
def test_other_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"is not a tar archive, or it is damaged|holds no images"):
        read_data(datasets.write(tmp_path / "x.tar", content))


def test_damage_anywhere_in_the_headers_is_one_sentence(tmp_path: Path) -> None:
    content = archive(tmp_path / "x.tar", [("a.png", PNG), ("a.cls", b"1"), ("é" * 90 + ".png", PNG)]).read_bytes()
    generator = np.random.default_rng(0)
    for number in range(300):
        changed = bytearray(content)
        for place in generator.integers(0, len(content) // 2, 3):
            changed[place] = generator.integers(0, 256)
        path = datasets.write(tmp_path / f"{number}.tar", bytes(changed))
        with contextlib.suppress(DataError):
            assert read_data(path).samples
