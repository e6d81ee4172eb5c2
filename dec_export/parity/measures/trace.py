"""The search for the first tensor of an engine whose distance from the reference exceeds the noise floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from dec_export.names import computation_order, describe
from dec_export.parity.gate import exceeds_noise
from dec_export.parity.measures.base import Frozen, Header, Measure, Section
from dec_export.parity.metrics import OutputParity
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Departures, Figure, Table
from dec_export.parity.runs import EngineRun, ReferenceOutputs, ReferenceRuns


class TracedTensor(Frozen):
    """The part of a tensor's `OutputParity` that a report keeps."""

    rel_l2: Number
    rel_l2_reference: Number
    ratio: Number
    typical_ratio: Number
    nonfinite: int


class TraceFacts(Frozen):
    """Every tensor in the order of computation, and the first tensor that is beyond the noise floor.

    first: the name of that tensor; None if no tensor is beyond the noise floor.
    place: the part of the model that computes it, in words; None if there is no such tensor.
    missing: the number of tensors of the reference that the engine does not show.
    tensors: the compared tensors by their names.
    engine: the engine that showed the tensors, in words.
    """

    first: str | None
    place: str | None
    missing: int
    tensors: dict[str, TracedTensor]
    engine: str


class Trace(Section):
    """The first tensor at which the engine leaves the reference."""

    name: ClassVar[str] = "trace"
    heading: ClassVar[str | None] = "Trace"

    trace: TraceFacts

    @property
    def verdict(self) -> str:
        """The first place beyond the noise floor, in one sentence."""
        missing = self.trace.missing
        hidden = f"; the engine does not show {missing} of the reference's tensors" if missing else ""
        return f"First beyond the noise floor: {self.trace.place or 'nothing'}{hidden}."

    def tensor_table(self, header: Header) -> Table:
        """Return a table of every tensor; it is long, and is shown only if the user asks for a trace."""
        return Table(
            f"Tensors of {header.engine} in the order of computation",
            ("tensor", "rel L2", "rel L2 of reference", "ratio", "typical ratio"),
            tuple(self._row(name, tensor) for name, tensor in self.trace.tensors.items()),
        )

    def _row(self, name: str, tensor: TracedTensor) -> tuple[str, ...]:
        return (
            f"{name}  <- first beyond the noise" if name == self.trace.first else name,
            *map(number, (tensor.rel_l2, tensor.rel_l2_reference)),
            *(number(ratio, ".2f") for ratio in (tensor.ratio, tensor.typical_ratio)),
        )

    def figures(self) -> list[Figure]:
        """Return a figure of every tensor's distance over its noise floor."""
        tensors = self.trace.tensors.items()
        return [
            Departures(
                "trace",
                "Distance over noise floor of every tensor in the order of computation",
                ratios={name: tensor.ratio for name, tensor in tensors},
                typical_ratios={name: tensor.typical_ratio for name, tensor in tensors},
                first=self.trace.first,
            )
        ]


def trace_of(tensors: Mapping[str, OutputParity], order: Sequence[str], engine: str) -> TraceFacts:
    """Find the first tensor that is beyond the noise floor.

    order: the names of all tensors of the reference.
    engine: the engine that showed the tensors, in words.
    """
    compared = [name for name in order if name in tensors]
    first = next((name for name in compared if exceeds_noise(tensors[name])), None)
    kept = {name: {key: getattr(tensors[name], key) for key in TracedTensor.model_fields} for name in compared}
    return TraceFacts(
        first=first,
        place=None if first is None else _place(first, compared, order),
        missing=len(order) - len(compared),
        tensors={name: TracedTensor(**facts) for name, facts in kept.items()},
        engine=engine,
    )


def _place(first: str, compared: Sequence[str], order: Sequence[str]) -> str:
    """Return a place in words, which is exact only if the tensor just before it was compared as well."""
    before = order[: order.index(first)]
    if not before or before[-1] in compared:
        return describe(first)
    return f"{describe(first)} or before it, where the engine shows nothing"


class TraceMeasure(Measure[ReferenceOutputs, Trace]):
    """The measure that compares every tensor that an engine shows."""

    section = Trace

    def reference(self, runs: ReferenceRuns) -> ReferenceOutputs:
        """Return every tensor of the references."""
        return runs.outputs

    def judge(self, reference: ReferenceOutputs, run: EngineRun) -> Trace:
        """Trace the engine, or the traced engine that shows inner tensors in its place."""
        order = computation_order(reference.fp64)
        if run.traced is None:
            return Trace(trace=trace_of(run.tensors, order, "the one that is judged"))
        tensors = reference.compare(run.traced.outputs)
        return Trace(trace=trace_of(tensors, order, "built anew to show its inner tensors"))
