"""Images are prepared as torchvision prepares them, and an image that cannot be prepared gives an error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from dec_export.data import images
from dec_export.data.images import Preprocessing, load_images, open_image, packaged_photographs, synthetic_images
from dec_export.errors import ImageError
from tests.helpers.images import scan_bomb

PREPROCESSING = Preprocessing(224, 0.9, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", [64, 160, 224, 256])
@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.9, "bicubic"), (0.95, "bilinear"), (1.0, "bicubic")])
def test_preprocessing_is_torchvisions_to_the_bit(size: int, crop_pct: float, interpolation: str) -> None:
    preprocessing = Preprocessing(size, crop_pct, interpolation, PREPROCESSING.mean, PREPROCESSING.std)
    transform = Compose(
        [
            Resize(int(size / crop_pct), InterpolationMode(interpolation)),
            CenterCrop(size),
            ToTensor(),
            Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    for path in packaged_photographs():
        image = open_image(path)
        assert np.array_equal(preprocessing.apply(image), transform(image).numpy()), path.name


def test_there_are_enough_photographs_for_a_proof() -> None:
    loaded = load_images(PREPROCESSING, 8)
    assert len(loaded) == 8
    assert loaded.array.shape == (8, 3, 224, 224)
    assert len(set(loaded.names)) == 8


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name, value in (("b.png", 0), ("a.jpg", 255), ("c.JPEG", 128)):
        Image.new("RGB", (40, 30), (value,) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    loaded = load_images(PREPROCESSING, 2, tmp_path)
    assert loaded.names == ("a.jpg", "b.png")
    assert loaded.array[0].mean() > 0 > loaded.array[1].mean()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (50, 40)).save(path)
    assert open_image(path).mode == "RGB"


def test_pixels_of_sixteen_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.new("I;16", (50, 40)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match="16 bits or more, expected 8"):
        load_images(PREPROCESSING, 1, tmp_path)


def test_without_photographs_smooth_images_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "packaged_photographs", list)
    loaded = load_images(PREPROCESSING, 3)
    assert "synthetic" in loaded.source
    assert np.array_equal(loaded.array[:2], synthetic_images(224, 2).array), "the first images must not depend on count"
    # Smooth: neighbouring pixels differ far less than pixels do.
    assert np.abs(np.diff(loaded.array, axis=-1)).mean() < 0.2 * loaded.array.std()


def test_an_empty_a_missing_and_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no image"):
        load_images(PREPROCESSING, 1, tmp_path)
    with pytest.raises(ImageError, match="No such file"):
        load_images(PREPROCESSING, 1, tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="Not a directory"):
        load_images(PREPROCESSING, 1, tmp_path / "file")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_image_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"cut\.{kind}' cannot be decoded, because it is truncated"):
        load_images(PREPROCESSING, 1, tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"GIF89a" + b"\0" * 60], ids=["empty", "text", "gif"])
def test_a_file_that_only_says_it_is_an_image(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.png' is not a JPEG or PNG image"):
        load_images(PREPROCESSING, 1, tmp_path)


def test_a_long_thin_image_is_refused_before_it_is_blown_up(tmp_path: Path) -> None:
    """The file has few pixels, but resizing its short side to 248 would make three thousand million pixels."""
    Image.new("RGB", (1, 50_000)).save(tmp_path / "thin.png")
    with pytest.raises(ImageError, match="becomes 248 x 12400000"):
        load_images(PREPROCESSING, 1, tmp_path)


def test_squashing_is_timms(tmp_path: Path) -> None:
    from timm.data import create_transform

    path = packaged_photographs()[0]
    squash = Preprocessing(160, 0.95, "bicubic", PREPROCESSING.mean, PREPROCESSING.std, squash=True)
    transform = create_transform(
        (3, 160, 160), crop_pct=0.95, crop_mode="squash", interpolation="bicubic", mean=squash.mean, std=squash.std
    )
    assert np.array_equal(squash.apply(open_image(path)), transform(open_image(path)).numpy())


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        load_images(PREPROCESSING, 1, tmp_path)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    path.write_bytes(scan_bomb())
    with pytest.raises(ImageError, match="5500 x 5500 pixels in 100 scans, expected at most 2000000000"):
        open_image(path)
    path.write_bytes(scan_bomb(200, 100))
    assert open_image(path).size == (200, 200)
