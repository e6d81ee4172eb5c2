"""The results of an evaluation, which are computed from the columns of all images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dec_export.evaluation import comparisons
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.columns import Evaluated, Table
from dec_export.evaluation.facts import ConditionFacts, GroupFacts, ModelFacts, Results
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.samples import Sample
from dec_export.evaluation.statistics import Interval

__all__ = ["Results", "summarise"]


def summarise(plan: Plan, chunks: Iterable[Chunk], engines: list[str]) -> Results:
    """Return the results of all chunks; `engines` are the names of the engines that ran the plan's models."""
    table = Table(chunks)
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
        skipped=table.skipped,
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
        disagreements=tuple(comparisons.disagreements(plan, images, table, predicted, names)),
        gate=comparisons.gate_of(plan, images, first),
    )


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
    """Yield the metrics of the images of each group of the layout; several groups are also combined."""
    keys = sorted({key for sample in images.samples for key in sample.groups})
    for group in [(key,) for key in keys] + ([tuple(keys)] if len(keys) > 1 else []):
        values = [_value(sample, group) for sample in images.samples]
        for value in sorted({value for value in values if value is not None}, key=_order):
            rows = np.array([found == value for found in values])
            metrics = {model.name: images.metrics(plan.conditions[0].name, model.name, rows) for model in plan.models}
            yield GroupFacts(group=", ".join(group), value=", ".join(value), images=int(rows.sum()), metrics=metrics)


def _value(sample: Sample, group: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(sample.groups[key] for key in group) if all(key in sample.groups for key in group) else None


def _order(value: tuple[str, ...]) -> list[tuple[float, str]]:
    """Return the place of a value among others: numbers in their order, before words."""
    return [(_number(part), part) for part in value]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")
