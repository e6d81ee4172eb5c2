"""The results of an evaluation, which are computed from the columns of all images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dec_export.errors import DataError
from dec_export.evaluation import comparisons
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.columns import Evaluated, Table
from dec_export.evaluation.conditions import Corruption
from dec_export.evaluation.facts import ConditionFacts, GroupFacts, ModelFacts, Results
from dec_export.evaluation.groups import (
    CORRUPTION,
    SCALE,
    SEVERITY,
    Corrupted,
    Rows,
    mean_corruption_error,
    rows_by_corruption,
    rows_by_value,
)
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.statistics import Interval

__all__ = ["Results", "summarise"]

# The group of a corruption at a severity.
CORRUPTED = "corruption and severity"


def summarise(plan: Plan, chunks: Iterable[Chunk], engines: list[str]) -> Results:
    """Return the results of all chunks; `engines` are the names of the engines that ran the plan's models.

    Raises DataError when no image could be decoded.
    """
    table = Table(chunks)
    if not len(table.kept):
        reason = next(iter(table.skipped.values()), "there are none")
        raise DataError(f"None of the {len(plan.data)} images can be used: {reason}")
    images = Evaluated(plan, table)
    names = comparisons.class_names(plan)
    found = _intervals(plan, images)
    predicted = comparisons.predictions(plan, table)
    matrix = predicted if plan.classes <= comparisons.MATRIX_CLASSES and images.labelled.any() else {}
    first = {condition: next(iter(by_baseline.values()), {}) for condition, by_baseline in found.items()}
    return Results(
        task=plan.task,
        layout=plan.data.layout,
        images=len(images.samples),
        labelled=int(images.labelled.sum()),
        skipped={_as_text(name): _as_text(reason) for name, reason in table.skipped.items()},
        models=tuple(
            ModelFacts(name=source.name, bundle=source.bundle.resolve().name, engine=engine)
            for source, engine in zip(plan.models, engines, strict=True)
        ),
        class_names=names,
        conditions=tuple(_conditions(plan, images, table, found)),
        groups=tuple(_groups(plan, images)),
        classes=tuple(comparisons.classes(plan, table, names)),
        confusions=tuple(comparisons.confusions(plan, images, predicted, names)),
        confusion_matrix={
            model: comparisons.confusion_matrix(images, one, plan.classes) for model, one in matrix.items()
        },
        corruption_error={
            source.name: error
            for source in plan.models
            if (error := _corruption_error(plan, images, source.name)) is not None
        },
        disagreements=tuple(comparisons.disagreements(plan, images, table, predicted, names)),
        gate=comparisons.gate_of(plan, images, first),
    )


def _as_text(name: str) -> str:
    """Return a name without bytes that are no text, which keys of JSON objects cannot hold; they are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _intervals(plan: Plan, images: Evaluated) -> dict[str, dict[str, dict[str, Interval]]]:
    """Return the paired differences by the names of condition, baseline and metric."""
    return {
        condition.name: {
            source.name: comparisons.intervals(plan, images, condition.name, source.name) for source in plan.models[1:]
        }
        for condition in plan.conditions
    }


def _conditions(
    plan: Plan, images: Evaluated, table: Table, found: dict[str, dict[str, dict[str, Interval]]]
) -> Iterator[ConditionFacts]:
    for condition in plan.conditions:
        agreements = {source.name: table.of(condition.name, source.name) for source in plan.models[1:]}
        yield ConditionFacts(
            name=condition.name,
            family=condition.family,
            strength=condition.strength,
            metrics={source.name: images.metrics(condition.name, source.name) for source in plan.models},
            differences={
                baseline: {name: comparisons.difference(interval) for name, interval in by_metric.items()}
                for baseline, by_metric in found[condition.name].items()
            },
            agreement={name: float(columns["agreement"].mean()) for name, columns in agreements.items() if columns},
        )


def _groups(plan: Plan, images: Evaluated) -> Iterator[GroupFacts]:
    """Yield the metrics of the images of each scale, corruption and severity, and of each corruption and severity."""
    for group in (SCALE, CORRUPTION, SEVERITY):
        for value, rows in rows_by_value(images.samples, group).items():
            yield _group(plan, images, group, value, rows)
    for key, rows in rows_by_corruption(images.samples).items():
        yield _group(plan, images, CORRUPTED, f"{key.corruption} {key.severity}", rows)


def _group(plan: Plan, images: Evaluated, group: str, value: str, rows: Rows) -> GroupFacts:
    chosen = np.zeros(len(images.samples), bool)
    chosen[rows] = True
    metrics = {model.name: images.metrics(plan.conditions[0].name, model.name, chosen) for model in plan.models}
    return GroupFacts(group=group, value=value, images=len(rows), metrics=metrics)


def _corruption_error(plan: Plan, images: Evaluated, model: str) -> float | None:
    """Return the mean corruption error of a model without a baseline; None without corruptions or without top-1."""
    top1 = next((metric for metric in plan.metrics if metric.name == "top1"), None)
    if top1 is None:
        return None
    clean = plan.conditions[0].name
    errors: dict[Corrupted, float] = {}
    for key, rows in rows_by_corruption(images.samples).items():
        chosen = np.zeros(len(images.samples), bool)
        chosen[rows] = True
        errors[key] = 1 - top1.compute(images.columns(clean, model, top1, chosen))
    for condition in plan.conditions:
        if isinstance(condition, Corruption):
            key = Corrupted(condition.corruption, condition.severity)
            errors[key] = 1 - top1.compute(images.columns(condition.name, model, top1))
    return mean_corruption_error(errors) if errors else None
