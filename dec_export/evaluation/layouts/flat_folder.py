"""A folder of images without labels, for predictions: all images in it and in its folders."""

from __future__ import annotations

from pathlib import Path

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.files import images_below, images_in, name_below
from dec_export.evaluation.samples import DataSet, FileSource, Sample


def _recognises(path: Path) -> bool:
    return path.is_dir() and bool(images_in(path))


def _read(path: Path, options: DataOptions) -> DataSet:  # noqa: ARG001 - every layout takes the options
    samples = [Sample(name_below(path, image), FileSource(image)) for image in images_below(path)]
    if not samples:
        raise DataError(f"'{path}' holds no images: expected JPEG or PNG files.")
    return DataSet(samples, FLAT_FOLDER.name)


FLAT_FOLDER = DataLayout("flat-folder", "IMAGE.jpeg, without labels", _recognises, _read, labelled=False)
