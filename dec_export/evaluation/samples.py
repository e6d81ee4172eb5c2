"""The images of a data set: where they are, what they show, and how they are read one at a time.

A data set lists its images without decoding them, so that its memory does not grow with their size.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dec_export.data.images import decode_image
from dec_export.errors import DataError

# One image file is at most this large; a larger one is more likely an attack on the memory.
MAX_FILE_BYTES = 256 << 20


def printable(name: str) -> str:
    """Return the name of a file as text; bytes of it that are not UTF-8 become their codes, such as \\xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class FileSource:
    """The content of a file."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the file in messages."""
        return printable(str(self.path))

    def read(self) -> bytes:
        """Return the content. Raises DataError when the file cannot be read or is too large."""
        try:
            facts = self.path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise DataError(f"'{self.name}' is not a file: give the path of an image.")
            if facts.st_size > MAX_FILE_BYTES:
                raise DataError(f"'{self.name}' is larger than {MAX_FILE_BYTES} bytes: give smaller images.")
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read '{self.name}': {error.strerror}.") from error


@dataclass(frozen=True)
class MemberSource:
    """The content of a file inside an uncompressed tar archive, by its first byte and its number of bytes."""

    archive: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The name of the archive and of the file inside it in messages."""
        return printable(f"{self.archive}:{self.member}")

    def read(self) -> bytes:
        """Return the content. Raises DataError when the archive cannot be read or was cut short."""
        if self.size > MAX_FILE_BYTES:
            raise DataError(f"'{self.name}' is larger than {MAX_FILE_BYTES} bytes: give smaller images.")
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"Cannot read '{self.name}': {error.strerror}.") from error
        if len(content) < self.size:
            raise DataError(f"'{self.name}' is cut short, because its archive is: copy the archive again.")
        return content


Source = FileSource | MemberSource


@dataclass(frozen=True)
class Sample:
    """One image of a data set, before it is decoded.

    name: a name that no other image of the data set has; it does not depend on where the data set lies.
    image: where the image is.
    label: its class; None if it has a mask instead, or no label.
    mask: where its mask of classes is; None for other tasks.
    groups: what the layout says about the image, as {"scale": "0.7"} or {"corruption": "fog", "severity": "3"}.
    """

    name: str
    image: Source
    label: int | None = None
    mask: Source | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_labelled(self) -> bool:
        """Whether it has a label or a mask."""
        return self.label is not None or self.mask is not None

    def decode(self) -> Image.Image:
        """Return the decoded image in RGB. Raises ImageError or DataError, which name the file and its defect."""
        return decode_image(io.BytesIO(self.image.read()), self.image.name)


@dataclass(frozen=True)
class DataSet:
    """The images of a data set in a fixed order.

    samples: the images. layout: the layout's name. classes: the names of the classes by their numbers; empty if the
    data set does not name them. ignored: the value of a mask's pixels that do not count; None if all count.
    """

    samples: Sequence[Sample]
    layout: str
    classes: tuple[str, ...] = ()
    ignored: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def is_labelled(self) -> bool:
        """Whether every image has a label or a mask."""
        return all(sample.is_labelled for sample in self.samples)
