"""The results of an evaluation: every metric of every model under every condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dec_export.evaluation.chunks import Chunk, Key
from dec_export.evaluation.plan import Plan
from dec_export.parity.numbers import Number
from dec_export.tasks import task_named
from dec_export.tasks.scores import Metric, mean_of


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Frozen):
    """A model that was evaluated: its name, the folder of its bundle, and the engine that ran it."""

    name: str
    bundle: str
    engine: str


class ConditionFacts(_Frozen):
    """The metrics of each model under one condition, by the models' and the metrics' names."""

    name: str
    family: str
    strength: Number
    metrics: dict[str, dict[str, Number]]


class Results(_Frozen):
    """The results of an evaluation.

    images, skipped: the images that were evaluated, and those that could not be decoded, by name with the reason.
    """

    task: str
    layout: str
    images: int
    skipped: dict[str, str]
    models: tuple[ModelFacts, ...]
    conditions: tuple[ConditionFacts, ...]


class Table:
    """The columns of all images, joined from chunks. kept: the numbers of the images that were evaluated."""

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
        self._columns = {key: np.concatenate(values) for key, values in parts.items()}

    def of(self, condition: str, model: str) -> Mapping[str, NDArray[Any]]:
        """Return the columns of one model under one condition by their names."""
        wanted = (condition, model)
        return {key.column: values for key, values in self._columns.items() if (key.condition, key.model) == wanted}


def metrics_of(plan: Plan) -> tuple[Metric, ...]:
    """Return the metrics of a plan's task, with its measure of invariance."""
    task = task_named(plan.task)
    column = task.metric.lower()
    return (*task.metrics(), Metric(column, task.metric, mean_of(column), False, False, column))


def summarise(plan: Plan, chunks: Iterable[Chunk], engines: list[str]) -> Results:
    """Return the results of all chunks; `engines` are the names of the engines that ran the plan's models."""
    table = Table(chunks)
    conditions = []
    for condition in plan.conditions:
        found: dict[str, dict[str, float]] = {}
        for source in plan.models:
            columns = table.of(condition.name, source.name)
            found[source.name] = {
                metric.name: metric.compute(columns)
                for metric in metrics_of(plan)
                if metric.column is None or metric.column in columns
            }
        conditions.append(
            ConditionFacts(name=condition.name, family=condition.family, strength=condition.strength, metrics=found)
        )
    return Results(
        task=plan.task,
        layout=plan.data.layout,
        images=len(table.kept),
        skipped=table.skipped,
        models=tuple(
            ModelFacts(name=source.name, bundle=source.bundle.resolve().name, engine=engine)
            for source, engine in zip(plan.models, engines, strict=True)
        ),
        conditions=tuple(conditions),
    )
