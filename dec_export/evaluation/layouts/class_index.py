"""The numbers of classes: alphabetical, as torchvision numbers the folders of ImageNet, or by an index file.

An index file is text or JSON. Text has one class on each line, and the line is the class's name, or the name of its
folder followed by other words; the number of the class is that of its line from 0 on, unless every line begins or ends
with the numbers 0, 1, ... in any order. JSON is a list of names or of [folder, name]; or an object from numbers to
these, as ImageNet's common index file; or an object from names to numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dec_export.errors import DataError

_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class _Index:
    """The classes of an index file in the order of their numbers.

    names: what each class is called. keys: the words by which folders may name the classes; the first list that has
    every folder of the data is the right one.
    """

    names: tuple[str, ...]
    keys: tuple[list[str], ...]


def number_classes(folders: Sequence[str], index: Path | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of each folder's class, and the names of all classes by their numbers.

    Raises DataError when the index file is not readable, or lacks one of the folders.
    """
    if index is None:
        return {name: number for number, name in enumerate(sorted(folders))}, tuple(sorted(folders))
    found = _read_index(index)
    tables = [{key: number for number, key in enumerate(keys)} for keys in found.keys]
    best = max(range(len(tables)), key=lambda i: (sum(folder in tables[i] for folder in folders), -i))
    missing = next((folder for folder in folders if folder not in tables[best]), None)
    if missing is not None:
        raise DataError(
            f"The class index '{index}' has no class '{missing}', which is a class of the data: complete the file, or "
            "leave the class out."
        )
    _check_unique([key for key in found.keys[best] if key in set(folders)], index)
    return {folder: tables[best][folder] for folder in folders}, found.names


def index_names(index: Path) -> tuple[str, ...]:
    """Return the names of all classes of an index file by their numbers. Raises DataError if it is not readable."""
    return _read_index(index).names


def _read_index(path: Path) -> _Index:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"The class index '{path}' is larger than {_MAX_BYTES} bytes: give a list of names.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read the class index '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The class index '{path}' is not text in UTF-8: give a list of names, or JSON.") from error
    found = _of_json(text, path) if path.suffix.lower() == ".json" else _of_text(text)
    if not found.names:
        raise DataError(f"The class index '{path}' names no class: give each class one line.")
    return found


def _of_text(text: str) -> _Index:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for place in (0, -1):
        numbers = [line.split()[place] for line in lines]
        if all(len(line.split()) > 1 for line in lines) and _count_up(numbers):
            rest = [line.split(maxsplit=1)[1] if place == 0 else line.rsplit(maxsplit=1)[0] for line in lines]
            lines = [line for _, line in sorted(zip(map(int, numbers), rest, strict=True))]
            break
    return _Index(tuple(lines), (lines, [line.split()[0] for line in lines]))


def _of_json(text: str, path: Path) -> _Index:
    try:
        entries = _ordered(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The class index '{path}' is not valid JSON: {error}.") from error
    keys, names = ([entry if isinstance(entry, str) else entry[i] for entry in entries] for i in (0, -1))
    return _Index(tuple(names), (keys, names))


def _ordered(document: object, path: Path) -> list[str | list[str]]:
    if isinstance(document, dict) and document:
        if _count_up(list(document)):
            document = [document[key] for key in sorted(document, key=int)]
        elif all(type(value) is int for value in document.values()) and _count_up(
            [str(value) for value in document.values()]
        ):
            document = sorted(document, key=document.__getitem__)
    if isinstance(document, list) and document and all(map(_is_entry, document)):
        return document
    raise DataError(
        f"The class index '{path}' must be a list of names, an object from the numbers 0, 1, ... to names or to "
        "[folder, name], or an object from names to these numbers."
    )


def _count_up(texts: Sequence[str]) -> bool:
    """Return whether texts are the numbers 0, 1, ..., N - 1 in any order."""
    return all(text.isascii() and text.isdigit() and len(text) < 9 for text in texts) and sorted(
        map(int, texts)
    ) == list(range(len(texts)))


def _is_entry(entry: object) -> bool:
    if isinstance(entry, list):
        return len(entry) == 2 and all(isinstance(part, str) for part in entry)
    return isinstance(entry, str)


def _check_unique(keys: Sequence[str], path: Path) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"The class index '{path}' names '{twice}' twice: give each class one line.")
