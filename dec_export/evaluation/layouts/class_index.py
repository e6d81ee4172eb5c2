"""The numbers of classes: alphabetical, as torchvision numbers the folders of ImageNet, or by an index file.

An index file is text with one class on each line, whose number is that of its line from 0 on; or JSON, either a list of
names, or an object from numbers to names or to [folder, name] as ImageNet's common index file has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dec_export.errors import DataError

_MAX_BYTES = 16 << 20


def number_classes(folders: Sequence[str], index: Path | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of each folder's class, and the names of all classes by their numbers.

    Raises DataError when the index file is not readable, or lacks one of the folders.
    """
    if index is None:
        return {name: number for number, name in enumerate(sorted(folders))}, tuple(sorted(folders))
    keys, names = _read_index(index)
    numbers = {key: number for number, key in enumerate(keys)}
    missing = [folder for folder in folders if folder not in numbers]
    if missing:
        raise DataError(
            f"The class index '{index}' has no class '{missing[0]}', which is a folder of the data: complete the file, "
            "or leave the folder out."
        )
    return {folder: numbers[folder] for folder in folders}, names


def _read_index(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the folders and the names of the classes in the order of their numbers."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"The class index '{path}' is larger than {_MAX_BYTES} bytes: give a list of names.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read the class index '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The class index '{path}' is not text in UTF-8: give a list of names, or JSON.") from error
    if path.suffix.lower() != ".json":
        keys = [line.split()[0] for line in text.splitlines() if line.strip()]
        return _checked(keys, path), tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        entries = _ordered(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The class index '{path}' is not valid JSON: {error}.") from error
    keys = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    names = tuple(entry if isinstance(entry, str) else entry[-1] for entry in entries)
    return _checked(keys, path), names


def _ordered(document: object, path: Path) -> list[str | list[str]]:
    if isinstance(document, dict) and document and sorted(document) == sorted(map(str, range(len(document)))):
        document = [document[str(number)] for number in range(len(document))]
    if isinstance(document, list) and document and all(map(_is_entry, document)):
        return document
    raise DataError(
        f"The class index '{path}' must be a list of names, or an object from the numbers 0, 1, ... to names or to "
        "[folder, name]."
    )


def _is_entry(entry: object) -> bool:
    if isinstance(entry, list):
        return len(entry) == 2 and all(isinstance(part, str) for part in entry)
    return isinstance(entry, str)


def _checked(keys: list[str], path: Path) -> list[str]:
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None or not keys:
        what = f"names '{twice}' twice" if twice else "names no class"
        raise DataError(f"The class index '{path}' {what}: give each class one line.")
    return keys
