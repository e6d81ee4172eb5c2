"""A table of paths and labels: CSV, TSV, or text with the label after the last blank of a line.

A first line without the name of an image and without a number is a header, whose names say which columns hold the path
and the label. Paths are relative to the table's folder. Labels are numbers, or names that a class index numbers;
without an index, names are numbered in alphabetical order.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.class_index import index_names, number_classes
from dec_export.evaluation.layouts.files import is_image
from dec_export.evaluation.samples import DataSet, FileSource, Sample

_SUFFIXES = (".csv", ".tsv", ".txt")
_PATHS = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path", "name", "id")
_LABELS = ("label", "target", "class", "class_id", "class_index", "label_id", "category", "label_name", "class_name")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


@dataclass(frozen=True)
class _Row:
    """A line of a table: its number, the path in it, and the label; None in a table without labels."""

    line: int
    path: str
    label: str | None


def _recognises(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _read(path: Path, options: DataOptions) -> DataSet:
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise DataError(f"Cannot read the table '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The table '{path}' is not text in UTF-8: save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"The table '{path}' is not a table of paths and labels: {error}.") from error
    if not rows:
        raise DataError(f"The table '{path}' names no images: expected a path and a label on each line.")
    _check_rows(rows, path)
    labels, names = _numbered(rows, path, options.class_index)
    samples = [
        Sample(row.path, FileSource(path.parent / row.path), label=label)
        for row, label in zip(rows, labels, strict=True)
    ]
    if not any(sample.image.path.is_file() for sample in samples if isinstance(sample.image, FileSource)):
        raise DataError(
            f"None of the images that '{path}' names exists, such as '{samples[0].image.name}': paths are relative to "
            "the folder of the table."
        )
    return DataSet(samples, TABLE.name, names)


def _rows(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = _delimiter(path, first)
        columns: tuple[int, int | None] | None = None
        lines = csv.reader(file, delimiter=delimiter, strict=True) if delimiter else _blank_separated(file)
        for number, cells in enumerate(([cell.strip() for cell in line] for line in lines), start=1):
            if not any(cells):
                continue
            if columns is None:
                columns = _columns(cells)
                if not any(is_image(Path(cell)) or _NUMBER.fullmatch(cell) for cell in cells):
                    continue
            if len(cells) <= max(columns[0], columns[1] or 0):
                raise DataError(f"Row {number} of '{path}' has {len(cells)} cells, fewer than the first: repair it.")
            yield _Row(number, cells[columns[0]], None if columns[1] is None else cells[columns[1]])


def _blank_separated(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        text = line.strip()
        yield [text] if is_image(Path(text)) else text.rsplit(maxsplit=1)


def _delimiter(path: Path, first: str) -> str | None:
    """Return the character between cells, or None if it is the last blank of each line."""
    if path.suffix.lower() == ".tsv" or "\t" in first:
        return "\t"
    if path.suffix.lower() == ".txt" and not any(character in first for character in ",;"):
        return None
    return ";" if first.count(";") > first.count(",") else ","


def _columns(cells: Sequence[str]) -> tuple[int, int | None]:
    """Return the places of the path and of the label by the first line, which is a header or an image."""
    images = [place for place, cell in enumerate(cells) if is_image(Path(cell))]
    if images:
        path, label = images[0], None
    else:
        names = [cell.lower() for cell in cells]
        path = next((names.index(name) for name in _PATHS if name in names), 0)
        label = next((names.index(name) for name in _LABELS if name in names), None)
    rest = [place for place in range(len(cells)) if place != path]
    return path, label if label is not None else next(iter(rest), None)


def _check_rows(rows: Sequence[_Row], path: Path) -> None:
    lines: dict[str, int] = {}
    for row in rows:
        if not row.path or "\0" in row.path:
            raise DataError(f"Row {row.line} of '{path}' names no image: expected a path and a label.")
        if row.label == "":
            raise DataError(f"Row {row.line} of '{path}' has no label for '{row.path}': add it, or remove the row.")
        if lines.setdefault(row.path, row.line) != row.line:
            raise DataError(
                f"Rows {lines[row.path]} and {row.line} of '{path}' both name '{row.path}': name each image once."
            )


def _numbered(rows: Sequence[_Row], path: Path, index: Path | None) -> tuple[list[int | None], tuple[str, ...]]:
    """Return the number of each row's class, and the names of the classes."""
    texts = [row.label for row in rows if row.label is not None]
    if not texts:
        return [None for _ in rows], ()
    if not all(map(_NUMBER.fullmatch, texts)):
        numbers, names = number_classes(sorted(set(texts)), index)
        return [numbers[text] for text in texts], names
    labels = [int(text.split(".")[0]) for text in texts]
    names = () if index is None else index_names(index)
    wrong = next((i for i, label in enumerate(labels) if label < 0 or (names and label >= len(names))), None)
    if wrong is not None:
        most = f"at most {len(names) - 1}, the last class of the class index" if names else "0 or more"
        raise DataError(
            f"Row {rows[wrong].line} of '{path}' has the label {labels[wrong]}, expected {most}: correct it."
        )
    return list(labels), names


TABLE = DataLayout("table", "a .csv, .tsv or .txt file with a path and a label on each line", _recognises, _read)
