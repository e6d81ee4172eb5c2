"""The file `dec_export.json` beside each model that dec-export wrote, and the needs of a server of all these models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dec_export.serving.triton.config import Interface, Kind
from dec_export.serving.triton.layout import RECORD
from dec_export.serving.triton.models import ServedModel, shared_memory_of

_MIB = 1 << 20


class ModelRecord(BaseModel):
    """The record of a model; files of later versions of dec-export may have more fields.

    Attributes:
        interface: the interface on which clients and ensembles depend.
        version: the newest version of the model.
        shared_memory_bytes: the most shared memory that the Python backend uses for the model.
        gpu: whether the model runs on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    interface: Interface
    version: int = 0
    shared_memory_bytes: int = 0
    gpu: bool = False


def record_of(model: ServedModel, version: int) -> ModelRecord:
    """Return the record of a model that is written as that version."""
    return ModelRecord(
        interface=model.config.interface(),
        version=version,
        shared_memory_bytes=shared_memory_of(model),
        gpu=any(group.kind is Kind.KIND_GPU for group in model.config.instance_group),
    )


def read_record(folder: Path) -> ModelRecord | None:
    """Return the record in a model's folder, or None if dec-export did not write the model."""
    try:
        return ModelRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def other_records(root: Path, models: Sequence[ServedModel]) -> Iterator[ModelRecord]:
    """Return the records of the models of the repository that are not among `models`."""
    names = {model.name for model in models}
    for path in root.glob(f"*/{RECORD}") if root.is_dir() else ():
        record = read_record(path.parent)
        if path.parent.name not in names and record is not None:
            yield record


@dataclass(frozen=True)
class Needs:
    """The needs of a server of a whole repository: shared memory, and whether it needs a GPU."""

    shared_memory_bytes: int
    gpu: bool

    @classmethod
    def of(cls, records: Iterable[ModelRecord]) -> Needs:
        """Return the needs of a server of all these models."""
        found = list(records)
        return cls(sum(record.shared_memory_bytes for record in found), any(record.gpu for record in found))

    @property
    def shared_memory_mib(self) -> int:
        """The shared memory as a multiple of 64 MiB, including some for the server itself."""
        return 64 * (self.shared_memory_bytes // (64 * _MIB) + 1)
