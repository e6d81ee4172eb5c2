"""The results of one chunk of images, and the file that keeps them.

A chunk is always computed with the same batches, by whichever process, so its numbers never depend on the others.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray

from dec_export.errors import DataError
from dec_export.files import write_atomically

# The bytes of the SHA-256 with which a file begins.
_DIGEST = 32


@dataclass(frozen=True)
class Key:
    """What a column belongs to: a condition, a model, and the column's name."""

    condition: str
    model: str
    column: str


@dataclass(frozen=True)
class Chunk:
    """The results of some images.

    first: the number of its first image in the evaluation. kept: (n,) the numbers of the images that were evaluated.
    columns: the numbers of these images, each (n, ...). skipped: the names of images that could not be decoded, with
    the reasons.
    """

    first: int
    kept: NDArray[np.int64]
    columns: Mapping[Key, NDArray[Any]]
    skipped: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Return the chunk as the content of a file, which begins with the hash of the rest."""
        keys = list(self.columns)
        # NumPy's type of `savez` mistakes the arrays for its other arguments, hence Any.
        arrays: dict[str, Any] = {f"column_{i}": self.columns[key] for i, key in enumerate(keys)}
        facts = {
            "first": self.first,
            "keys": [[key.condition, key.model, key.column] for key in keys],
            "skipped": dict(self.skipped),
        }
        content = io.BytesIO()
        np.savez(content, kept=self.kept, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
        return hashlib.sha256(content.getvalue()).digest() + content.getvalue()

    @staticmethod
    def from_bytes(content: bytes) -> Chunk:
        """Invert `to_bytes`. Raises ValueError when the content is damaged."""
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("the hash does not fit")
        with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as file:
            facts = json.loads(bytes(file["facts"]))
            columns = {Key(*key): file[f"column_{i}"] for i, key in enumerate(facts["keys"])}
            return Chunk(int(facts["first"]), file["kept"], columns, dict(facts["skipped"]))

    def save(self, path: Path) -> None:
        """Write the chunk to a file, which is complete or absent."""
        write_atomically(path, self.to_bytes())

    @staticmethod
    def load(path: Path) -> Chunk:
        """Read a chunk. Raises DataError when the file is damaged."""
        try:
            return Chunk.from_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{path}' is damaged ({error}): run the evaluation with --resume, which computes it again."
            ) from error
