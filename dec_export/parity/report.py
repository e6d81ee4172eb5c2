"""The results of a proof: `Report` for one engine, `Summary` for all engines of a bundle. Their dumps are the JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    Field,
    InstanceOf,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dec_export.bundle.store import PARITY, Bundle
from dec_export.errors import BundleError
from dec_export.parity.measures.base import Frozen, Header, Section, Verdict
from dec_export.parity.measures.registry import MEASURES
from dec_export.tasks.arrays import Array

# The number of images whose logits a report keeps for its pictures.
SHOWN_IMAGES = 4

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, eq=False)
class Shown:
    """An engine's logits for the first `SHOWN_IMAGES` images and for their locally scaled copies."""

    logits: Array
    logits_scaled: Array


class Report(Header):
    """The proof of one engine, with one section for each measure.

    Its JSON is flat: the fields of all sections are keys of the report.
    shown: the logits for pictures, which are not part of the JSON.
    """

    sections: tuple[SerializeAsAny[Section], ...]
    shown: InstanceOf[Shown] | None = Field(default=None, exclude=True, repr=False)

    def __getitem__(self, kind: type[S]) -> S:
        """Return the section of a type; raise KeyError when there is none."""
        for section in self.sections:
            if isinstance(section, kind):
                return section
        raise KeyError(kind.name)

    @model_validator(mode="before")
    @classmethod
    def _find_sections(cls, document: object) -> object:
        if not isinstance(document, Mapping) or "sections" in document:
            return document
        return {**document, "sections": [measure.section.model_validate(document) for measure in MEASURES]}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)  # JSON
        for section in document.pop("sections"):
            document |= section
        return document


class Summary(Frozen):
    """The proof of all engines of a bundle, which is the content of its `parity.json`."""

    schema_version: Literal[1] = 1
    gate: Verdict
    engines: dict[str, Report]


def summarise(reports: Sequence[Report]) -> Summary:
    """Return the summary of all engines, whose gate passes if that of every engine does."""
    gate: Verdict = "pass" if all(report.passed for report in reports) else "fail"
    return Summary(gate=gate, engines={report.engine: report for report in reports})


def summary_of(bundle: Bundle) -> Summary | None:
    """Return the proof that a bundle was built with, or None when no engine was run.

    Raises BundleError when the file is damaged.
    """
    return load_summary(bundle.path / PARITY) if PARITY in bundle.manifest.files else None


def load_summary(path: Path) -> Summary:
    """Read a `parity.json`; raise BundleError when the file is not a proof."""
    try:
        # The names of files may hold bytes that are not text, which only Python's own reader accepts.
        return Summary.model_validate(json.loads(path.read_bytes()))
    except ValueError as error:  # Pydantic's ValidationError is one
        raise BundleError(f"'{path}' is not a proof that this version can read: build the bundle again.") from error
