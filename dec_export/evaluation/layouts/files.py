"""The image files of folders, for all layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dec_export.data.images import SUFFIXES
from dec_export.errors import DataError


def is_image(path: Path) -> bool:
    """Return whether a file's name ends like that of an image that dec-export reads."""
    return path.suffix.lower() in SUFFIXES


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, in the order of their names; hidden ones are left out."""
    return sorted(path for path in _entries(folder) if path.is_dir() and not path.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in the order of their names."""
    return sorted(path for path in _entries(folder) if is_image(path) and path.is_file())


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and in its folders, in the order of their paths."""
    return [*images_in(folder), *(image for inner in folders_in(folder) for image in images_below(inner))]


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise DataError(f"Cannot read the folder '{folder}': {error.strerror}.") from error
