"""Small labelled data sets of real images, written out in every layout that an evaluation reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dec_export.data.digits import DigitImages, compose, source_digits

# The names of the digits' folders; their alphabetical order is that of their numbers.
CLASSES = tuple(f"digit_{number}" for number in range(10))


def digit_images(count: int, seed: int = 3) -> DigitImages:
    """Return images of the test digits.

    Those of docs/digits.md are `digit_images(4000)` and, for masks, `digit_images(1000)`. Fewer are other ones, because
    every image depends on the count.
    """
    return compose(source_digits("test"), count, seed)


def png(pixels: NDArray[np.uint8], palette: bytes | None = None) -> bytes:
    """Return a PNG of pixels (H, W) or (H, W, 3); with a palette, the pixels are its indices."""
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)  # This makes a grey image one with a palette, of the same indices.
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def write(path: Path, content: bytes) -> Path:
    """Write a file, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def class_folders(root: Path, images: DigitImages) -> Path:
    """Write `CLASS/NUMBER.png`, with a folder for every class."""
    for name in CLASSES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(images.pixels):
        write(root / CLASSES[images.labels[number]] / f"{number:06d}.png", png(pixels))
    return root


def table(root: Path, images: DigitImages, suffix: str = ".csv") -> Path:
    """Write images and a table with a header."""
    delimiter = "\t" if suffix == ".tsv" else ","
    lines = [delimiter.join(("path", "label"))]
    for number, pixels in enumerate(images.pixels):
        write(root / "images" / f"{number:06d}.png", png(pixels))
        lines.append(delimiter.join((f"images/{number:06d}.png", str(images.labels[number]))))
    return write(root / f"labels{suffix}", "\n".join(lines).encode())


def shards(root: Path, images: DigitImages, size: int = 8) -> Path:
    """Write tar archives with WebDataset's own writer."""
    import webdataset

    root.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, len(images), size)):
        with webdataset.TarWriter(str(root / f"digits-{shard:06d}.tar")) as writer:
            for number in range(start, min(start + size, len(images))):
                label = int(images.labels[number])
                writer.write({"__key__": f"{number:06d}", "png": png(images.pixels[number]), "cls": label})
    return root


def mask_folders(root: Path, images: DigitImages) -> Path:
    """Write `images/NUMBER.png` and `masks/NUMBER.png`; every second mask has a palette."""
    palette = bytes(range(256)) * 3
    for number, pixels in enumerate(images.pixels):
        write(root / "images" / f"{number:06d}.png", png(pixels))
        write(root / "masks" / f"{number:06d}.png", png(images.masks[number], palette if number % 2 else None))
    return root


def scaled_folders(root: Path, scenes: int, scales: tuple[float, ...] = (0.7, 1.0, 1.3)) -> Path:
    """Write `CLASS/NAME_scale_0.7.PNG`, with all three digits of a scene at one scale."""
    for scale in scales:
        images = compose(source_digits("test"), scenes, 3, scale=scale, every=True)
        for number, pixels in enumerate(images.pixels):
            name = f"scene{number:03d}_scale_{scale:g}.PNG"
            write(root / CLASSES[images.labels[number]] / name, png(pixels))
    return root


def corrupted_folders(root: Path, images: DigitImages, corruptions: tuple[str, ...] = ("fog", "contrast")) -> Path:
    """Write `CORRUPTION/SEVERITY/CLASS/NUMBER.png`, at the severities 1 and 3."""
    from dec_export.evaluation.corruptions.registry import corrupt

    for corruption in corruptions:
        for severity in (1, 3):
            for number, pixels in enumerate(images.pixels):
                changed = corrupt(np.repeat(pixels[..., None], 3, axis=2), corruption, severity, str(number))
                folder = root / corruption / str(severity) / CLASSES[images.labels[number]]
                write(folder / f"{number:06d}.png", png(changed))
    return root


def photograph_crops(size: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Return square photographs of scikit-image and scikit-learn, (size, size, 3)."""
    from dec_export.data.images import packaged_photographs

    for path in packaged_photographs()[:count]:
        with Image.open(path) as image:
            side = min(image.size)
            cropped = image.convert("RGB").crop((0, 0, side, side))
            yield np.asarray(cropped.resize((size, size), Image.Resampling.BICUBIC))
