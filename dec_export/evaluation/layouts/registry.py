"""The layouts that are known, and the choice of the one that a data set has."""

from __future__ import annotations

from pathlib import Path

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.class_folders import CLASS_FOLDERS
from dec_export.evaluation.layouts.corrupted_folders import CORRUPTED_FOLDERS
from dec_export.evaluation.layouts.files import has_images
from dec_export.evaluation.layouts.flat_folder import FLAT_FOLDER
from dec_export.evaluation.layouts.mask_folders import MASK_FOLDERS
from dec_export.evaluation.layouts.scaled_folders import SCALED_FOLDERS
from dec_export.evaluation.layouts.shards import SHARDS
from dec_export.evaluation.layouts.table import TABLE
from dec_export.evaluation.samples import DataSet

# The first layout that recognises a path reads it, so special layouts come before general ones.
LAYOUTS: tuple[DataLayout, ...] = (
    TABLE,
    SHARDS,
    MASK_FOLDERS,
    SCALED_FOLDERS,
    CORRUPTED_FOLDERS,
    CLASS_FOLDERS,
    FLAT_FOLDER,
)


def read_data(path: Path, options: DataOptions = DataOptions()) -> DataSet:
    """Return the data set at a path, in the layout that the options name or that recognises the path.

    Raises DataError when the path does not exist, when no layout recognises it, or when its files do not fit.
    """
    layout = _named(options.layout) if options.layout is not None else _recognised(path)
    # A pattern of archives names files, and is none.
    if layout is not SHARDS and not path.exists():
        raise DataError(f"There is no data at '{path}': give a folder, a table of paths and labels, or a tar archive.")
    if layout is None:
        if path.is_dir() and not has_images(path):
            raise DataError(f"The folder '{path}' holds no images: expected JPEG or PNG files, or tar archives.")
        known = "; ".join(f"{layout.name}: {layout.summary}" for layout in LAYOUTS)
        raise DataError(f"'{path}' has no layout that is known ({known}): arrange it so, or name one with --layout.")
    return layout.read(path, options)


def layout_names() -> tuple[str, ...]:
    """Return the names of all layouts."""
    return tuple(layout.name for layout in LAYOUTS)


def _recognised(path: Path) -> DataLayout | None:
    return next((layout for layout in LAYOUTS if layout.recognises(path)), None)


def _named(name: str) -> DataLayout:
    found = next((layout for layout in LAYOUTS if layout.name == name), None)
    if found is None:
        raise DataError(f"Unknown layout '{name}', expected one of {', '.join(layout_names())}.")
    return found
