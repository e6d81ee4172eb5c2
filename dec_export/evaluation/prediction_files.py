"""The files of predictions: Parquet, or CSV. They are written while predictions arrive, and are complete or absent."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol  # pyarrow has no types

from dec_export.errors import DataError
from dec_export.files import check_new_file
from dec_export.libraries import has_package

# The rows of one group of a Parquet file, which are in memory at once.
_GROUP = 1024


@dataclass(frozen=True)
class Row:
    """The prediction for one image.

    classes, labels, scores: the best classes, their names, and their scores, the best one first; empty if the image
    could not be decoded, and `error` then says why. class_map: the class of each pixel as a PNG file, of tasks that
    have one.
    """

    name: str
    classes: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    class_map: bytes | None = None
    error: str | None = None


class Table(Protocol):
    """A file of predictions."""

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows at the end."""
        ...

    def finish(self) -> None:
        """Write the rows that are in memory."""
        ...


@contextmanager
def new_table(path: Path, *, has_maps: bool, top_k: int, force: bool) -> Iterator[Table]:
    """Open a new file of predictions; its name says its format. It appears when the block ends without an error.

    Raises DataError for another format and when the file cannot be written, and DecExportError when it exists and
    `force` is off.
    """
    kinds: dict[str, Callable[[Path, bool, int, ExitStack], Table]] = {".parquet": _ParquetTable, ".csv": _CsvTable}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"The file of predictions must be named .parquet or .csv, found '{path}'.")
    check_new_file(path, force=force, option="--out")
    if kind is _ParquetTable and not has_package("pyarrow"):
        raise DataError("A Parquet file needs the package pyarrow: pip install 'dec-export[evaluate]', or write .csv.")
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with ExitStack() as stack:
            table = kind(partial, has_maps, top_k, stack)
            yield table
            table.finish()
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"Cannot write '{path}': {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


class _ParquetTable:
    """A Parquet file with lists of the best classes; it is written in groups of rows."""

    def __init__(self, path: Path, has_maps: bool, _: int, stack: ExitStack) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        fields = [
            ("name", pa.string()),
            ("classes", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            *([("class_map", pa.binary())] if has_maps else []),
            ("error", pa.string()),
        ]
        self._schema = pa.schema(fields)
        self._writer: Any = stack.enter_context(ParquetWriter(path, self._schema))
        self._rows: list[Row] = []

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._rows.append(row)
            if len(self._rows) == _GROUP:
                self.finish()

    def finish(self) -> None:
        import pyarrow as pa

        rows, self._rows = self._rows, []
        if rows:
            columns = {name: [getattr(row, name) for row in rows] for name in self._schema.names}
            self._writer.write_table(pa.table(columns, schema=self._schema))


class _CsvTable:
    """A CSV file with a column for each rank: class_1, label_1, score_1, class_2, ... It has no class maps."""

    def __init__(self, path: Path, _: bool, top_k: int, stack: ExitStack) -> None:
        self._file = stack.enter_context(path.open("x", newline="", encoding="utf-8"))
        self._writer = csv.writer(self._file)
        self._top_k = top_k
        ranks = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "label", "score")]
        self._writer.writerow(["name", *ranks, "error"])

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            # The shortest text that is the same float32 again.
            scores = [f"{score:.9g}" for score in row.scores]
            ranks = [value for rank in zip(row.classes, row.labels, scores, strict=True) for value in rank]
            empty = [""] * (3 * self._top_k - len(ranks))
            self._writer.writerow([row.name, *ranks, *empty, row.error or ""])

    def finish(self) -> None:
        self._file.flush()
