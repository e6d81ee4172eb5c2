"""What a measure is: it looks at the reference, then at an engine, and writes a section of the report.

A new measure is one module in this folder and one line in `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from dec_export.formats import Format
from dec_export.parity.numbers import Name
from dec_export.parity.presentation import Figure, Row, Table
from dec_export.parity.runs import EngineRun, ReferenceRuns

Verdict = Literal["pass", "fail"]


class Frozen(BaseModel):
    """Facts that do not change."""

    model_config = ConfigDict(frozen=True)


class Precision(Frozen):
    """The formats in which an engine's parts compute."""

    backbone: Format
    solver: Format

    @property
    def formats(self) -> tuple[Format, Format]:
        return (self.backbone, self.solver)


class ProofImages(Frozen):
    """The images of a proof: where they are from, and what each is called."""

    source: Name
    names: tuple[Name, ...]


class Header(Frozen):
    """Of what engine a report is, what it was run on, and whether it passed the gate.

    engine_details: what the engine says of itself, each engine in its own words. failures: a sentence for everything
    that breaks the gate's rule.
    """

    schema_version: Literal[1] = 1
    engine: str
    engine_details: dict[str, Any]
    task: str
    precision: Precision
    gate: Verdict
    gate_rule: str
    failures: tuple[str, ...]
    samples: int
    images: ProofImages
    batch_sizes: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether the engine passed the gate."""
        return self.gate == "pass"


class Section(Frozen):
    """What one measure found for one engine. Its fields are keys of the report's JSON.

    name: of the measure, and of its part of the page. heading: of that part; None when the page has no such part.
    """

    name: ClassVar[str]
    heading: ClassVar[str | None] = None

    @property
    def measured(self) -> bool:
        """Whether there is anything to show."""
        return True

    def failures(self) -> list[str]:
        """A sentence for everything that breaks the gate's rule.

        Complete only when the report was just made: `Header.failures` keeps them.
        """
        return []

    def rows(self) -> list[Row]:
        """Lines of the summary."""
        return []

    def tables(self, header: Header) -> list[Table]:  # noqa: ARG002 what a section may use
        """Tables for text; `header` is that of the report."""
        return []

    def figures(self) -> list[Figure]:
        """Figures for the page."""
        return []


R = TypeVar("R")
S_co = TypeVar("S_co", bound=Section, covariant=True)


class Measure(ABC, Generic[R, S_co]):
    """Something that is measured of the reference and of an engine. section: the type of what is reported of it."""

    section: ClassVar[type[Section]]

    @abstractmethod
    def reference(self, runs: ReferenceRuns) -> R:
        """What engines are to be compared with."""

    @abstractmethod
    def judge(self, reference: R, run: EngineRun) -> S_co:
        """Compare an engine."""
