"""The base classes of measures: a measure evaluates the reference, then an engine, and returns a section of the report.

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
    """The base of the types of a report, which cannot be changed."""

    model_config = ConfigDict(frozen=True)


class Precision(Frozen):
    """The formats in which an engine's parts compute."""

    backbone: Format
    solver: Format

    @property
    def formats(self) -> tuple[Format, Format]:
        """Both formats, the backbone's first."""
        return (self.backbone, self.solver)


class ProofImages(Frozen):
    """The source of a proof's images, and the name of each image."""

    source: Name
    names: tuple[Name, ...]


class Header(Frozen):
    """The engine of a report, the inputs that it was run on, and the verdict of the gate.

    engine_details: facts about the engine, whose keys each engine chooses itself.
    failures: a sentence for each violation of the gate's rule.
    """

    schema_version: Literal[1] = 1
    engine: str
    engine_details: dict[str, Any]  # JSON, whose values each engine chooses
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
    """The results of one measure for one engine, whose fields are keys of the report's JSON.

    name: the name of the measure and of its part of the page.
    heading: the heading of that part; None when the page has no such part.
    """

    name: ClassVar[str]
    heading: ClassVar[str | None] = None

    @property
    def measured(self) -> bool:
        """Whether there are results to show."""
        return True

    def failures(self) -> list[str]:
        """Return a sentence for each violation of the gate's rule.

        They are complete only before the report is written as JSON; `Header.failures` keeps them.
        """
        return []

    def rows(self) -> list[Row]:
        """Return the lines of the summary."""
        return []

    def tables(self, header: Header) -> list[Table]:  # noqa: ARG002 what a section may use
        """Return the tables for text; `header` is that of the report."""
        return []

    def figures(self) -> list[Figure]:
        """Return the figures for the page."""
        return []


R = TypeVar("R")
S_co = TypeVar("S_co", bound=Section, covariant=True)


class Measure(ABC, Generic[R, S_co]):
    """A measure of the reference and of an engine.

    section: the type of the section that reports the results.
    """

    section: ClassVar[type[Section]]

    @abstractmethod
    def reference(self, runs: ReferenceRuns) -> R:
        """Return the results of the reference, with which engines are compared."""

    @abstractmethod
    def judge(self, reference: R, run: EngineRun) -> S_co:
        """Compare an engine with the reference."""
