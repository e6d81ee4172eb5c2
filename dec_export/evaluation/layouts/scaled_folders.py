"""Folders of classes with each scene at several scales: `CLASS/NAME_scale_0.7.JPEG` (`data.scale_pairs`).

The groups of an image are its scale, as "0.7", and its scene, as "CLASS/NAME".
"""

from __future__ import annotations

from pathlib import Path

from dec_export.data.scale_pairs import parse
from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.class_index import number_classes
from dec_export.evaluation.layouts.files import folders_in, images_below, images_in, name_below
from dec_export.evaluation.samples import DataSet, FileSource, Sample, printable


def _recognises(path: Path) -> bool:
    if not path.is_dir() or images_in(path):
        return False
    first = next((images for folder in folders_in(path) if (images := images_below(folder))), [])
    return bool(first) and all(parse(image.name) for image in first)


def _read(path: Path, options: DataOptions) -> DataSet:
    folders = folders_in(path)
    numbers, names = number_classes([printable(folder.name) for folder in folders], options.class_index)
    samples = [
        _sample(path, image, numbers[printable(folder.name)]) for folder in folders for image in images_below(folder)
    ]
    if not samples:
        raise DataError(f"'{path}' holds no images at several scales: expected CLASS/NAME_scale_0.7.JPEG.")
    return DataSet(samples, SCALED_FOLDERS.name, names)


def _sample(root: Path, image: Path, label: int) -> Sample:
    found = parse(image.name)
    name = name_below(root, image)
    if found is None:
        raise DataError(
            f"The name of '{name}' does not say a scale, as all others do: expected NAME_scale_0.7.JPEG; or name the "
            "layout class-folders."
        )
    scene = printable((image.parent / found.scene[1]).relative_to(root).as_posix())
    return Sample(name, FileSource(image), label=label, groups={"scale": f"{found.scale:g}", "scene": scene})


SCALED_FOLDERS = DataLayout(
    "scaled-folders", "CLASS/NAME_scale_0.7.JPEG, each scene at several scales", _recognises, _read
)
