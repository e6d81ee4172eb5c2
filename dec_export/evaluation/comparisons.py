"""The comparison of the engine with its baselines on the same images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dec_export.evaluation.columns import Evaluated, Table
from dec_export.evaluation.facts import ClassFacts, Confusion, Difference, Disagreement, GateFacts
from dec_export.evaluation.gate import conditions_of, judge, overall
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.statistics import Interval, paired_difference
from dec_export.tasks.measures import iou_of_columns

# The numbers of confusions and of images that are listed, and of classes up to which there is a full matrix.
LISTED_CONFUSIONS = 10
LISTED_IMAGES = 8
MATRIX_CLASSES = 50


def intervals(plan: Plan, images: Evaluated, condition: str, baseline: str) -> dict[str, Interval]:
    """Return the paired difference of every metric between the engine and a baseline under one condition."""
    engine = plan.models[0].name
    return {
        metric.name: paired_difference(
            metric,
            images.columns(condition, engine, metric),
            images.columns(condition, baseline, metric),
        )
        for metric in images.measured(condition, engine)
    }


def difference(interval: Interval) -> Difference:
    """Return an interval with what it says in words."""
    return Difference(
        difference=interval.difference,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value,
        words=_words(interval),
    )


def _words(interval: Interval) -> str:
    if math.isnan(interval.difference):
        return "not finite"
    if interval.difference == interval.low == interval.high == 0:
        return "equal"
    if interval.low <= 0 <= interval.high:
        return "within noise"
    return "higher" if interval.low > 0 else "lower"


def gate_of(plan: Plan, images: Evaluated, found: Mapping[str, Mapping[str, Interval]]) -> GateFacts | None:
    """Return the verdicts on the limits of a plan; `found` has the first baseline's intervals of each condition."""
    if not plan.limits:
        return None
    judgements = []
    for limit in plan.limits:
        invariance = limit.metric.name == plan.invariance
        count = len(images.samples) if invariance else int(images.labelled.sum())
        for condition in conditions_of(limit, plan.conditions, plan.invariance):
            missing = Interval(math.nan, math.nan, math.nan)
            interval = found[condition.name].get(limit.metric.name, missing)
            judgements.append(judge(limit, condition.name, interval, count))
    verdict = overall(judgement.verdict for judgement in judgements)
    return GateFacts(baseline=plan.models[1].name, verdict=verdict, judgements=tuple(judgements))


def class_names(plan: Plan) -> tuple[str, ...]:
    """Return the name of each class of the model; a class that the data do not name has its number."""
    named = plan.data.classes
    return tuple(named[i] if i < len(named) else str(i) for i in range(plan.classes))


def classes(plan: Plan, table: Table, names: tuple[str, ...]) -> Iterator[ClassFacts]:
    """Yield the intersection over union of each class of the unchanged images; there is none without pixels."""
    found = {
        model.name: iou_of_columns(columns)
        for model in plan.models
        if "intersection" in (columns := table.of(plan.conditions[0].name, model.name))
    }
    for i, name in enumerate(names if found else ()):
        yield ClassFacts(number=i, name=name, iou={model: float(values[i]) for model, values in found.items()})


def predictions(plan: Plan, table: Table) -> dict[str, NDArray[np.int64]]:
    """Return the class that each model predicts for each unchanged image, -1 for logits that are not finite.

    There are none if the task does not predict one class for each image.
    """
    columns = {model.name: table.of(plan.conditions[0].name, model.name) for model in plan.models}
    return {name: found["predicted"] for name, found in columns.items() if "predicted" in found}


def confusions(
    plan: Plan, images: Evaluated, predicted: Mapping[str, NDArray[np.int64]], names: tuple[str, ...]
) -> Iterator[Confusion]:
    """Yield the most frequent confusions of the engine and of its first baseline, beside those of the other models."""
    counts = {model: _wrong(images, found) for model, found in predicted.items()}
    shown = [counts[model.name] for model in plan.models[:2] if model.name in counts]
    pairs = sorted({pair for one in shown for pair in one}, key=lambda pair: (-max(one[pair] for one in shown), pair))
    for label, taken_for in pairs[:LISTED_CONFUSIONS]:
        found = {model: one[label, taken_for] for model, one in counts.items()}
        yield Confusion(label=names[label], predicted=names[taken_for], images=found)


def _wrong(images: Evaluated, predicted: NDArray[np.int64]) -> Counter[tuple[int, int]]:
    wrong = images.labelled & (predicted != images.labels) & (predicted >= 0)
    return Counter(zip(images.labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))


def confusion_matrix(images: Evaluated, predicted: NDArray[np.int64], count: int) -> tuple[tuple[int, ...], ...]:
    """Return the number of labelled images by label and prediction; `count` is the number of classes."""
    used = images.labelled & (predicted >= 0)
    found = np.bincount(images.labels[used] * count + predicted[used], minlength=count**2).reshape(count, count)
    return tuple(tuple(row) for row in found.tolist())


def disagreements(
    plan: Plan,
    images: Evaluated,
    table: Table,
    predicted: Mapping[str, NDArray[np.int64]],
    names: tuple[str, ...],
) -> Iterator[Disagreement]:
    """Yield the unchanged images on which the engine and its first baseline differ most."""
    if len(plan.models) < 2 or not images.samples:
        return
    columns = table.of(plan.conditions[0].name, plan.models[1].name)
    # A distance that is not finite is the largest.
    distances = np.where(np.isnan(columns["distance"]), np.inf, columns["distance"])
    for i in np.argsort(-distances, kind="stable")[:LISTED_IMAGES].tolist():
        if distances[i] > 0:
            label = images.labels[i]
            yield Disagreement(
                name=images.samples[i].name,
                label=names[label] if label >= 0 else None,
                predictions={
                    model.name: _named(int(predicted[model.name][i]), names)
                    for model in plan.models[:2]
                    if model.name in predicted
                },
                distance=float(columns["distance"][i]),
                agreement=float(columns["agreement"][i]),
            )


def _named(number: int, names: tuple[str, ...]) -> str:
    return names[number] if number >= 0 else "not finite"
