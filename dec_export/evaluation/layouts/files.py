"""The image files of folders, for all layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dec_export.data.images import SUFFIXES
from dec_export.errors import DataError
from dec_export.evaluation.samples import printable


def is_image(path: Path) -> bool:
    """Return whether a file's name ends like that of an image that dec-export reads."""
    return path.suffix.lower() in SUFFIXES


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, in the order of their names; hidden ones are left out."""
    return sorted(path for path in _entries(folder) if path.is_dir())


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in the order of their names; hidden ones are left out.

    A link that leads nowhere is an image that cannot be read, so it is among them.
    """
    return sorted(path for path in _entries(folder) if is_image(path) and _may_be_file(path))


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and in its folders, in the order of their paths.

    A link to a folder that it lies in is not followed, because it has no end.
    """
    return list(_below(folder, frozenset()))


def has_images(folder: Path) -> bool:
    """Return whether there is an image file in a folder or in one of its folders."""
    return next(_below(folder, frozenset()), None) is not None


def name_below(folder: Path, path: Path) -> str:
    """Return the name of an image by its place in the folder of the data set."""
    return printable(path.relative_to(folder).as_posix())


def _below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above:
        return
    yield from images_in(folder)
    for inner in folders_in(folder):
        yield from _below(inner, above | {here})


def _may_be_file(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot read the folder '{folder}': {error.strerror}.") from error
