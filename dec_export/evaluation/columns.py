"""The columns of all images of an evaluation, which are joined from chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray

from dec_export.evaluation.chunks import Chunk, Key
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.samples import Sample
from dec_export.tasks.scores import Columns, Metric


class Table:
    """The columns of all images. kept: the numbers of the images that were evaluated; skipped: the others' reasons."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        parts: dict[Key, list[NDArray[Any]]] = {}
        kept: list[NDArray[np.int64]] = []
        self.skipped: dict[str, str] = {}
        for chunk in chunks:
            kept.append(chunk.kept)
            self.skipped |= chunk.skipped
            for key, values in chunk.columns.items():
                parts.setdefault(key, []).append(values)
        self.kept = np.concatenate(kept) if kept else np.zeros(0, np.int64)
        self._columns: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
        for key in list(parts):
            # Each part is released as soon as it is joined.
            joined = np.concatenate(parts.pop(key))
            self._columns.setdefault((key.condition, key.model), {})[key.column] = joined

    def of(self, condition: str, model: str) -> Mapping[str, NDArray[Any]]:
        """Return the columns of one model under one condition by their names."""
        return self._columns.get((condition, model), {})


class Evaluated:
    """The images that were evaluated, with what is known of them.

    samples: the images. labelled: (N,) whether each has a label. labels: (N,) its class, or -1.
    """

    def __init__(self, plan: Plan, table: Table) -> None:
        self._plan, self._table = plan, table
        self.samples: list[Sample] = [plan.data.samples[i] for i in table.kept]
        self.labelled = np.array([sample.is_labelled for sample in self.samples], bool)
        self.labels = np.array([-1 if one.label is None else one.label for one in self.samples], np.int64)

    def columns(self, condition: str, model: str, metric: Metric, rows: NDArray[np.bool_] | None = None) -> Columns:
        """Return the columns that a metric is computed from.

        rows: (N,) the images that are wanted; None means all. Images without a label count for invariance alone.
        """
        chosen = np.ones(len(self.samples), bool) if rows is None else rows
        if metric.name != self._plan.invariance:
            chosen = chosen & self.labelled
        columns = self._table.of(condition, model)
        return columns if chosen.all() else {name: values[chosen] for name, values in columns.items()}

    def measured(self, condition: str, model: str) -> list[Metric]:
        """Return the metrics that a condition has."""
        columns = self._table.of(condition, model)
        return [m for m in self._plan.metrics if columns and (m.column is None or m.column in columns)]

    def metrics(self, condition: str, model: str, rows: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Return every metric of a model under a condition by its name."""
        return {
            metric.name: metric.compute(self.columns(condition, model, metric, rows))
            for metric in self.measured(condition, model)
        }
