"""Tar archives as WebDataset writes them: one archive, a folder of archives, or a pattern such as
`data-{000000..000012}.tar`.

The files of a sample have one key, which is their name up to the first dot of its last part: an image, its class as
`.cls`, or as `.json` with a "label", or its mask as `.seg.png` or `.mask.png`. Nothing is unpacked: an archive is only
listed, and images are read where they lie in it, so links and names of other folders in an archive have no effect.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataLayout, DataOptions
from dec_export.evaluation.layouts.class_index import index_names, number_classes
from dec_export.evaluation.layouts.files import images_in, is_image
from dec_export.evaluation.samples import DataSet, MemberSource, Sample, printable

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tbz2", ".txz")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_MOST_SHARDS = 1_000_000
_MASKS = ("seg.png", "mask.png")
# The file of a label is a number or a short JSON document.
_MOST_LABEL_BYTES = 1 << 20

_Class = int | str


@dataclass
class _Files:
    """The files of one sample that are used; `labels` are those of which the first one states the class."""

    image: MemberSource | None = None
    mask: MemberSource | None = None
    labels: dict[str, MemberSource] = field(default_factory=dict)


def _recognises(path: Path) -> bool:
    if path.is_dir():
        return not images_in(path) and bool(_archives_in(path))
    return _is_archive(path)


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((".tar", *_COMPRESSED))


def _archives_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_archive(path) and not path.name.startswith("."))


def _read(path: Path, options: DataOptions) -> DataSet:
    shards = _archives_in(path) if path.is_dir() else [path] if path.exists() else _expanded(path)
    found: list[Sample] = []
    classes: list[_Class | None] = []
    for shard in shards:
        for sample, name in _samples(shard):
            found.append(sample)
            classes.append(name)
    if not found:
        raise DataError(
            f"'{path}' holds no images: expected tar archives with files such as 000001.jpg and 000001.cls."
        )
    labels, names = _numbered(found, classes, options.class_index)
    samples = [
        Sample(sample.name, sample.image, label, sample.mask) for sample, label in zip(found, labels, strict=True)
    ]
    return DataSet(samples, SHARDS.name, names, options.ignored)


def _expanded(path: Path) -> list[Path]:
    """Return the archives that a pattern with braces names. Raises DataError when one of them is missing."""
    parts = _BRACES.split(str(path))
    choices = [_choices(part, path) if i % 2 else [part] for i, part in enumerate(parts)]
    named = itertools.islice(map("".join, itertools.product(*choices)), _MOST_SHARDS + 1)
    shards = []
    for shard in map(Path, named):
        if not shard.is_file():
            raise DataError(f"There is no archive '{shard}': give a .tar file, or a pattern of files that exist.")
        shards.append(shard)
    return shards


def _choices(text: str, path: Path) -> list[str]:
    found = _RANGE.fullmatch(text)
    if found is None:
        return text.split(",")
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MOST_SHARDS:
        raise DataError(
            f"The pattern '{path}' must count up by at most {_MOST_SHARDS} archives, found {{{text}}}: correct it."
        )
    return [str(number).zfill(len(found[1])) for number in range(first, last + 1)]


def _samples(shard: Path) -> Iterator[tuple[Sample, _Class | None]]:
    """Return the samples of an archive in its order, with the class of each."""
    grouped: dict[str, _Files] = {}
    for member in _members(shard):
        folder, _, base = member.name.rpartition("/")
        key, dot, extension = base.partition(".")
        if key and dot:
            files = grouped.setdefault(f"{folder}/{key}" if folder else key, _Files())
            _assign(files, extension.lower(), MemberSource(shard, member.name, member.offset_data, member.size))
    for files in grouped.values():
        if files.image is not None:
            label = next(
                (_class_of(kind, files.labels[kind]) for kind in ("cls", "json") if kind in files.labels), None
            )
            name = printable(f"{shard.name}/{files.image.member}")
            yield Sample(name, files.image, mask=files.mask), label


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Return the regular files of an archive. Raises DataError when it is compressed or damaged."""
    try:
        with shard.open("rb") as file:
            if file.read(8).startswith(_MAGIC) or shard.name.lower().endswith(_COMPRESSED):
                raise DataError(f"'{shard}' is compressed, so its images cannot be read one by one: uncompress it.")
            file.seek(0)
            size = shard.stat().st_size
            with tarfile.open(fileobj=file, mode="r:") as archive:
                end = 0
                for member in archive:
                    # The archive would otherwise keep all of them. The library's types lack the attribute.
                    archive.members = []  # type: ignore[attr-defined]
                    if member.size < 0 or member.offset_data < end or member.offset_data + member.size > size:
                        raise DataError(
                            f"'{shard}' is damaged or cut short at '{printable(member.name)}': copy it again."
                        )
                    end = member.offset_data
                    if member.isreg() and not member.issparse():
                        yield member
    except OSError as error:
        raise DataError(f"Cannot read '{shard}': {error.strerror}.") from error
    # Damaged headers lead Python's module to errors of several classes.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise DataError(f"'{shard}' is not a tar archive, or it is damaged: {error}.") from error


def _assign(files: _Files, extension: str, source: MemberSource) -> None:
    last = Path(f"x.{extension}")
    if extension in _MASKS:
        twice, files.mask = files.mask is not None, source
    elif is_image(last):
        twice, files.image = files.image is not None, source
    elif extension in ("cls", "json"):
        twice, files.labels[extension] = extension in files.labels, source
    else:
        return
    if twice:
        raise DataError(f"'{source.name}' is not the only file of its kind for its sample: give each sample one.")


def _class_of(kind: str, source: MemberSource) -> _Class:
    """Return what the file of a label states: a number, or the name of a class."""
    if source.size > _MOST_LABEL_BYTES:
        raise DataError(f"'{source.name}' has {source.size} bytes, too many for a label: expected a class.")
    try:
        text = source.read().decode("utf-8-sig").strip()
        found: object = json.loads(text) if kind == "json" else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{source.name}' cannot be read as a label: {error}.") from error
    if isinstance(found, dict):
        found = next((found[key] for key in ("label", "cls", "class") if key in found), None)
    if isinstance(found, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", found):
        found = int(found)
    if type(found) is int and found < 0:
        raise DataError(f"'{source.name}' holds the class {found}, expected 0 or more: correct it.")
    if type(found) is int or (isinstance(found, str) and found):
        return found
    raise DataError(f"'{source.name}' holds no class: expected a number, or a name.")


def _numbered(
    samples: list[Sample], classes: list[_Class | None], index: Path | None
) -> tuple[list[int | None], tuple[str, ...]]:
    """Return the number of each sample's class, and the names of the classes; classes may be missing altogether."""
    stated = [name for name in classes if name is not None]
    if not stated:
        return [None for _ in samples], ()
    if len(stated) < len(classes):
        unlabelled = samples[classes.index(None)]
        raise DataError(f"'{unlabelled.image.name}' has no label, and others have: add a .cls file, or leave it out.")
    numbers = [name for name in stated if isinstance(name, int)]
    if len(numbers) == len(stated):
        names = () if index is None else index_names(index)
        if names and max(numbers) >= len(names):
            wrong = samples[next(i for i, number in enumerate(numbers) if number >= len(names))]
            raise DataError(f"'{wrong.image.name}' has a class beyond the {len(names)} of the class index: correct it.")
        return list(numbers), names
    texts = [str(name) for name in stated]
    table, names = number_classes(sorted(set(texts)), index)
    return [table[text] for text in texts], names


SHARDS = DataLayout("shards", "tar archives of WebDataset, or a pattern {000000..000012}.tar", _recognises, _read)
