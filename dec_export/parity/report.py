"""What a proof found: `Report` of one engine, `Summary` of all engines of a bundle. Their dumps are the JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
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

# Images whose logits a report keeps for its pictures.
SHOWN_IMAGES = 4

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, eq=False)
class Shown:
    """An engine's logits for the first `SHOWN_IMAGES` images and for their locally scaled copies."""

    logits: NDArray[np.floating[Any]]
    logits_scaled: NDArray[np.floating[Any]]


class Report(Header):
    """The proof of one engine: one section for each measure.

    Its JSON is flat: the fields of all sections are keys of the report. shown: for pictures; not part of the JSON.
    """

    sections: tuple[SerializeAsAny[Section], ...]
    shown: InstanceOf[Shown] | None = Field(default=None, exclude=True, repr=False)

    def __getitem__(self, kind: type[S]) -> S:
        """The section of a type. Raises KeyError when there is none."""
        for section in self.sections:
            if isinstance(section, kind):
                return section
        raise KeyError(kind.name)

    @model_validator(mode="before")
    @classmethod
    def _find_sections(cls, document: Any) -> Any:  # whatever is to be validated
        if not isinstance(document, Mapping) or "sections" in document:
            return document
        return {**document, "sections": [measure.section.model_validate(document) for measure in MEASURES]}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        for section in document.pop("sections"):
            document |= section
        return document


class Summary(Frozen):
    """The proof of all engines of a bundle: the content of its `parity.json`."""

    schema_version: Literal[1] = 1
    gate: Verdict
    engines: dict[str, Report]


def summarise(reports: Sequence[Report]) -> Summary:
    """The gate over all engines, and each engine's report."""
    gate: Verdict = "pass" if all(report.passed for report in reports) else "fail"
    return Summary(gate=gate, engines={report.engine: report for report in reports})


def summary_of(bundle: Bundle) -> Summary | None:
    """The proof that a bundle was built with; None when no engine was run. Raises BundleError when it is damaged."""
    return load_summary(bundle.path / PARITY) if PARITY in bundle.manifest.files else None


def load_summary(path: Path) -> Summary:
    """Read a `parity.json`. Raises BundleError when it is not one."""
    try:
        # Names of files may hold bytes that are no text, which only Python's own reader takes.
        return Summary.model_validate(json.loads(path.read_bytes()))
    except ValueError as error:  # Pydantic's ValidationError is one
        raise BundleError(f"'{path}' is not a proof that this version can read: build the bundle again.") from error
