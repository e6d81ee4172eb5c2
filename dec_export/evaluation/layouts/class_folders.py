"""Folders of classes, as ImageNet's validation set is often arranged: `CLASS/IMAGE.jpeg`."""

from __future__ import annotations

from pathlib import Path

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.class_index import number_classes
from dec_export.evaluation.layouts.files import folders_in, has_images, images_below, images_in, name_below
from dec_export.evaluation.samples import DataSet, FileSource, Sample, printable

# The folders of a data set that hold its parts, each of which has the folders of classes.
_PARTS = {"train", "training", "val", "valid", "validation", "test"}


def _recognises(path: Path) -> bool:
    return path.is_dir() and not images_in(path) and any(has_images(folder) for folder in folders_in(path))


def _read(path: Path, options: DataOptions) -> DataSet:
    folders = folders_in(path)
    if len(folders) > 1 and {folder.name.lower() for folder in folders} <= _PARTS:
        raise DataError(f"'{path}' holds the parts of a data set, not classes: give one of them, as '{folders[-1]}'.")
    numbers, names = number_classes([printable(folder.name) for folder in folders], options.class_index)
    samples = [
        Sample(name_below(path, image), FileSource(image), label=numbers[printable(folder.name)])
        for folder in folders
        for image in images_below(folder)
    ]
    if not samples:
        raise DataError(f"'{path}' holds no images in folders of classes: expected CLASS/IMAGE.jpeg or .png.")
    return DataSet(samples, CLASS_FOLDERS.name, names)


CLASS_FOLDERS = DataLayout("class-folders", "CLASS/IMAGE.jpeg, a folder for each class", _recognises, _read)
