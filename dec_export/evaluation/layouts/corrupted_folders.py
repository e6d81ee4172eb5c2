"""Folders in the layout of ImageNet-C: `CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG`.

The folders of corruptions may lie in folders of kinds, as `noise/gaussian_noise/1/CLASS`. The groups of an image are
its corruption, as "fog", and its severity, as "3".
"""

from __future__ import annotations

from pathlib import Path

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.class_index import number_classes
from dec_export.evaluation.layouts.files import folders_in, has_images, images_below, images_in, name_below
from dec_export.evaluation.samples import DataSet, FileSource, Sample, printable

_SEVERITIES = {"1", "2", "3", "4", "5"}


def _recognises(path: Path) -> bool:
    return path.is_dir() and not images_in(path) and bool(_corruptions(path))


def _corruptions(path: Path) -> list[Path]:
    """Return the folders of corruptions; none if a folder holds anything else than severities, or kinds of them."""
    found = []
    for folder in folders_in(path):
        if _is_corruption(folder):
            found.append(folder)
            continue
        inner = folders_in(folder)
        if not inner or not all(map(_is_corruption, inner)):
            return []
        found += inner
    return found


def _is_corruption(folder: Path) -> bool:
    severities = folders_in(folder)
    return (
        bool(severities)
        and {severity.name for severity in severities} <= _SEVERITIES
        and any(has_images(inner) for severity in severities for inner in folders_in(severity))
    )


def _read(path: Path, options: DataOptions) -> DataSet:
    severities = [severity for corruption in _corruptions(path) for severity in folders_in(corruption)]
    if not severities:
        raise DataError(f"'{path}' holds no corrupted images: expected CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG.")
    loose = next((image for severity in severities for image in images_in(severity)), None)
    if loose is not None:
        raise DataError(
            f"'{loose}' lies in no folder of a class: expected CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG, so move it."
        )
    _check_names(severities)
    classes = sorted({printable(folder.name) for severity in severities for folder in folders_in(severity)})
    numbers, names = number_classes(classes, options.class_index)
    samples = [
        Sample(
            name_below(path, image),
            FileSource(image),
            label=numbers[printable(folder.name)],
            groups={"corruption": printable(severity.parent.name), "severity": severity.name},
        )
        for severity in severities
        for folder in folders_in(severity)
        for image in images_below(folder)
    ]
    return DataSet(samples, CORRUPTED_FOLDERS.name, names)


def _check_names(severities: list[Path]) -> None:
    places: dict[str, Path] = {}
    for folder in (severity.parent for severity in severities):
        if places.setdefault(folder.name, folder) != folder:
            raise DataError(f"The corruption '{folder.name}' has two folders, '{places[folder.name]}' and '{folder}'.")


CORRUPTED_FOLDERS = DataLayout(
    "corrupted-folders", "CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG, as ImageNet-C", _recognises, _read
)
