"""The measure of the outputs' distances from float64, which the gate compares with the noise floor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from dec_export.formats import Format
from dec_export.names import LOGITS, is_output, is_phi, map_name
from dec_export.parity import gate
from dec_export.parity.measures.base import Header, Measure, Section
from dec_export.parity.metrics import OutputParity
from dec_export.parity.numbers import number
from dec_export.parity.presentation import Table
from dec_export.parity.runs import EngineRun, ReferenceRuns


class Distances(Section):
    """The distance of every output that the engine returned, and of every solved phi.

    missing: the names of outputs that the engine should have returned; they are not part of the JSON.
    """

    name: ClassVar[str] = "distances"
    heading: ClassVar[str | None] = "Distances"

    outputs: dict[str, OutputParity]
    phi: dict[str, OutputParity]
    missing: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def all(self) -> dict[str, OutputParity]:
        """The outputs, followed by the phis."""
        return self.outputs | self.phi

    def failures(self) -> list[str]:
        """Return a sentence for each tensor that breaks the rule or is missing."""
        broken = (gate.departure(name, parity) for name, parity in self.all.items())
        return [*(f"{name} was not returned by the engine" for name in self.missing), *filter(None, broken)]

    def tables(self, header: Header) -> list[Table]:
        """Return a table of every tensor's distance beside the noise floor."""
        single = set(header.precision.formats) == {Format.FP32}
        kind = Format.FP32.label if single else "/".join(header.precision.formats)
        title = (
            f"Distance from the float64 reference: {header.engine} {header.engine_details.get('version', '')}, "
            f"{header.samples} images ({header.images.source})"
        )
        columns = ("tensor", "max abs", "rel L2", f"rel L2 of {kind} reference", "ratio", "typical ratio")
        return [Table(title, columns, tuple(_row(name, parity) for name, parity in self.all.items()))]


def _row(name: str, parity: OutputParity) -> tuple[str, ...]:
    distances = (parity.max_abs, parity.rel_l2, parity.rel_l2_reference)
    ratios = (parity.ratio, parity.typical_ratio)
    return (name, *map(number, distances), *(number(ratio, ".2f") for ratio in ratios))


def distances(tensors: dict[str, OutputParity], expected: Iterable[str] = ()) -> Distances:
    """Return the section for the outputs among these tensors; the engine should have returned those in `expected`."""
    judged = {name: parity for name, parity in tensors.items() if is_output(name)}
    return Distances(
        outputs={name: parity for name, parity in judged.items() if not is_phi(name)},
        phi={name: parity for name, parity in judged.items() if is_phi(name)},
        missing=tuple(name for name in expected if name not in judged),
    )


@dataclass(frozen=True)
class Expected:
    """The names of the outputs that every engine returns, and of the phis, which only some engines show."""

    outputs: tuple[str, ...]
    phis: tuple[str, ...]


class DistancesMeasure(Measure[Expected, Distances]):
    """The measure that compares every output with float64."""

    section = Distances

    def reference(self, runs: ReferenceRuns) -> Expected:
        """Return the names of the tensors to compare; every engine's run has the reference's outputs."""
        tap = runs.options.forms.tap
        outputs = (LOGITS,) if tap is None else (LOGITS, map_name(tap))
        return Expected(outputs, tuple(filter(is_phi, runs.outputs.fp64)))

    def judge(self, reference: Expected, run: EngineRun) -> Distances:
        """Compare the engine's outputs, each at its worst batch size."""
        phis = reference.phis if run.engine.exposes_phi else ()
        return distances(run.tensors, expected=(*reference.outputs, *phis))
