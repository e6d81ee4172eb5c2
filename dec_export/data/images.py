"""Images as a model's input: photographs if there are any, otherwise synthetic images."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dec_export.data.preprocessing import MAX_PIXELS, MAX_SCANNED_PIXELS
from dec_export.data.preprocessing import Preprocessing as Preprocessing
from dec_export.data.scale_pairs import parse, whole_groups
from dec_export.errors import ImageError

SUFFIXES = (".jpg", ".jpeg", ".png")

# The wheels of scikit-image and scikit-learn (extra `demo`) hold these photographs; those with most detail come first.
_PACKAGED = {
    "skimage": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "camera.png"),
    "sklearn": ("china.jpg", "flower.jpg"),
}
_PACKAGED_MORE = {"skimage": ("coins.png", "clock_motion.png", "hubble_deep_field.jpg", "retina.jpg")}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


@dataclass(frozen=True)
class ImageSet:
    """Model inputs. array: (N, 3, H, W) float32. names: the name of each image. source: their origin in words."""

    names: tuple[str, ...]
    array: NDArray[np.float32]
    source: str

    def __len__(self) -> int:
        return len(self.names)


def load_images(preprocessing: Preprocessing, count: int, folder: Path | None = None) -> ImageSet:
    """Return the first `count` images of a folder; without one, packaged photographs; without these, synthetic ones.

    A folder may hold images of one scene at several scales (`data.scale_pairs`), also in a folder for each class. More
    than `count` images are read if the last scene would be cut otherwise.
    """
    if folder is not None:
        paths = _list_scenes(folder) or list_images(folder)
        names = [path.relative_to(folder).as_posix() for path in paths]
        chosen = whole_groups(names, count)
        source = f"folder {folder.name or folder}"
        return _read([paths[i] for i in chosen], preprocessing, source, [names[i] for i in chosen])
    paths = packaged_photographs()[:count]
    if paths:
        return _read(paths, preprocessing, "photographs shipped with scikit-image and scikit-learn")
    return synthetic_images(preprocessing.size, count)


def list_images(folder: Path) -> list[Path]:
    """Return the JPEG and PNG files of a folder, sorted by name. Raises ImageError when there are none."""
    try:
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    except OSError as error:
        raise ImageError(f"Cannot read the image folder '{folder}': {error.strerror}.") from error
    if not paths:
        raise ImageError(f"The folder '{folder}' holds no image: expected files that end in {', '.join(SUFFIXES)}.")
    return paths


def _list_scenes(folder: Path) -> list[Path]:
    """Return the images of a folder's folders whose names say a scale, sorted; none if the folder holds images itself.

    Other files are not read, because a folder of folders without such names is a mistake that `list_images` reports.
    """
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES and parse(path.name))
    return [] if any(path.suffix.lower() in SUFFIXES for path in folder.glob("*.*")) else files


def packaged_photographs() -> list[Path]:
    """Return photographs from installed packages, which are not imported."""
    found = []
    for package, names in [*_PACKAGED.items(), *_PACKAGED_MORE.items()]:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent / _FOLDERS[package]
            found += [folder / name for name in names if (folder / name).is_file()]
    return found


def _read(
    paths: Sequence[Path], preprocessing: Preprocessing, source: str, names: Sequence[str] | None = None
) -> ImageSet:
    arrays = [preprocessing.apply(open_image(path)) for path in paths]
    return ImageSet(tuple(names or (path.name for path in paths)), np.stack(arrays), source)


def open_image(path: Path) -> Image.Image:
    """Decode a JPEG or PNG file completely. Raises ImageError, which says what is wrong with the file."""
    with path.open("rb") as file:
        return decode_image(file, str(path))


def decode_image(file: BinaryIO, name: str, *, convert: bool = True) -> Image.Image:
    """Decode the content of a JPEG or PNG file completely, in RGB unless `convert` is off.

    Raises ImageError, which calls the file by its name and says what is wrong with it.
    """
    image = _decoded(file, name)
    return image.convert("RGB") if convert else image


def _decoded(file: BinaryIO, path: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # The limit below is stricter.
            image = Image.open(file, formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"'{path}' has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}: scale it."
            )
        scans = _scans(file) if image.format == "JPEG" else 1
        if image.width * image.height * scans > MAX_SCANNED_PIXELS:
            raise ImageError(
                f"'{path}' has {image.width} x {image.height} pixels in {scans} scans, expected at most "
                f"{MAX_SCANNED_PIXELS} pixels in all scans: save it as a JPEG that is not progressive."
            )
        if image.mode.startswith(("I", "F")) or _png_bits(file) > 8:
            raise ImageError(f"'{path}' has pixels of 16 bits or more, expected 8: convert it.")
        image.load()
        return image
    except ImageError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(f"'{path}' is not a JPEG or PNG image of at most {MAX_PIXELS} pixels: convert it.") from error
    except MemoryError:
        raise
    # Damaged bytes lead Pillow's decoders to errors of many classes, failed assertions among them.
    except Exception as error:
        raise ImageError(f"'{path}' cannot be decoded, because it is truncated or damaged: {error}.") from error


def _scans(file: BinaryIO) -> int:
    """Return how many scans a JPEG holds at most: every scan begins with a marker, which no scan's data can hold."""
    place = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(place)
    return scans


def _png_bits(file: BinaryIO) -> int:
    """Return the bits of each colour from a PNG file's header, or 8 for other files.

    Pillow opens images with 16 bits for each colour as images with 8 bits.
    """
    place = file.tell()
    file.seek(0)
    header = file.read(25)
    file.seek(place)
    return header[24] if header.startswith(b"\x89PNG") and len(header) == 25 else 8


def synthetic_images(size: int, count: int, seed: int = 0) -> ImageSet:
    """Return sums of a few random waves of low frequency.

    They are smooth like photographs; white noise would show only rounding errors.
    """
    generator = np.random.default_rng(seed)
    axis = np.linspace(0, 1, size)
    images = np.zeros((count, 3, size, size))
    for image in images:
        for _ in range(12):
            frequency, phase = generator.uniform(-6, 6, 2), generator.uniform(0, 2 * np.pi)
            wave = np.cos(2 * np.pi * (frequency[0] * axis[:, None] + frequency[1] * axis[None, :]) + phase)
            image += generator.normal(size=(3, 1, 1)) * wave / (1 + np.hypot(*frequency))
    names = tuple(f"synthetic_{i}" for i in range(count))
    return ImageSet(names, images.astype(np.float32), f"synthetic smooth images, seed {seed}")
