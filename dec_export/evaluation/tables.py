"""The results of an evaluation as tables for a terminal of 80 columns, and as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dec_export.evaluation.facts import ConditionFacts, Difference, Results
from dec_export.evaluation.gate import Judgement, Verdict
from dec_export.evaluation.labels import Labels
from dec_export.report.tables import table

# A group with more values, such as all corruptions at all severities, is on the page alone.
_LISTED_GROUPS = 40


def evaluation(results: Results) -> RenderableType:
    """Return the gate, the metrics of every condition beside the baselines, and those of the groups of images."""
    shown = Labels(results.task)
    tables: list[RenderableType] = [Text(_heading(results))]
    others: list[ConditionFacts] = []
    for condition in results.conditions:
        if condition.family == "clean" or shown.invariance in condition.metrics[results.engine]:
            tables += _condition(results, condition, shown)
        else:
            others.append(condition)
    tables += _corruptions(results, others, shown)
    tables += _groups(results, shown)
    if results.corruption_error:
        errors = ", ".join(f"{name} {error:.2%}" for name, error in results.corruption_error.items())
        tables.append(Text(f"mean corruption error: {errors}"))
    if results.confusions:
        tables.append(_confusions(results))
    if results.gate:
        tables.append(Text("\n".join(["", *gate_sentences(results)])))
    return Group(*tables)


def _heading(results: Results) -> str:
    return (
        f"{results.images:,} images ({results.layout}), {results.task}. Differences are {results.engine} minus a "
        "baseline, of shares in percentage points, with their 95 % intervals."
    )


def gate_sentences(results: Results) -> Iterator[str]:
    """Yield a sentence for each verdict of the gate."""
    if results.gate is None:
        return
    shown = Labels(results.task)
    for judgement in results.gate.judgements:
        yield sentence(judgement, results.engine, results.gate.baseline, shown)


def sentence(judgement: Judgement, engine: str, baseline: str, shown: Labels) -> str:
    """Return a verdict in words: what was found, what it is compared with, and how many images would tell."""
    name, unit = judgement.metric, shown.unit(judgement.metric)
    who = f"{shown.label(name)}, {judgement.condition}"
    limit = f"{shown.amount(name, judgement.limit)}{unit}"
    if math.isnan(judgement.drop):
        return f"FAILED: {who}: the metric of {engine} or of {baseline} is not a finite number."
    found = (
        f"the drop from {baseline} to {engine} is {shown.amount(name, judgement.drop)}{unit}, 95 % interval "
        f"{shown.amount(name, judgement.low)} to {shown.amount(name, judgement.high)}"
    )
    if judgement.verdict is Verdict.PASSED:
        return f"PASSED: {who}: {found}, which is within the limit of {limit}."
    if judgement.verdict is Verdict.FAILED:
        return f"FAILED: {who}: {found}, which is beyond the limit of {limit}."
    how_many = f"; about {judgement.needed:,} images would" if judgement.needed else ""
    return f"CANNOT TELL: {who}: {found}: too few images to tell whether it is beyond the limit of {limit}{how_many}."


def _condition(results: Results, condition: ConditionFacts, shown: Labels) -> Iterator[Table]:
    """Yield the table of one condition beside each baseline, with a row for each metric."""
    ours = condition.metrics[results.engine]
    if not results.baselines:
        rows = [[shown.label(name), shown.value(name, value)] for name, value in ours.items()]
        yield table(condition.name, ["metric", results.engine], rows, numbers=[results.engine])
    for baseline, differences in condition.differences.items():
        found = [
            [shown.label(name), *_beside(condition, baseline, name, results.engine, shown)] for name in differences
        ]
        found.append(["same class", "", f"{condition.agreement[baseline]:.2%}", "", ""])
        yield _narrow(condition.name, ["metric", results.engine, baseline], found)


def _corruptions(results: Results, members: Sequence[ConditionFacts], shown: Labels) -> Iterator[Table]:
    """Yield the first metric of many conditions beside each baseline, in one table; nothing without conditions."""
    name = next((name for one in members for name in one.metrics[results.engine]), None)
    if name is None:
        return
    title = f"corruptions: {shown.label(name)}"
    if not results.baselines:
        rows = [[one.name, shown.value(name, one.metrics[results.engine][name])] for one in members]
        yield table(title, ["condition", results.engine], rows, numbers=[results.engine])
    for baseline in results.baselines:
        found = [[one.name, *_beside(one, baseline, name, results.engine, shown)] for one in members]
        yield _narrow(title, ["condition", results.engine, baseline], found)


def _beside(condition: ConditionFacts, baseline: str, name: str, engine: str, shown: Labels) -> list[str]:
    """Return a metric of the engine and of a baseline, and their difference in numbers and in words."""
    difference = condition.differences[baseline][name]
    values = [shown.value(name, condition.metrics[model][name]) for model in (engine, baseline)]
    return [*values, interval(name, difference, shown), difference.words]


def _narrow(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose differences stay on one line, while words may be folded."""
    found = table(title, [*columns, "difference", "in words"], rows, numbers=(*columns[1:], "difference"))
    found.padding, found.show_edge = (0, 0), False
    for place in (1, 2, 3):
        found.columns[place].min_width = max(len(row[place]) for row in rows)
    return found


def interval(name: str, difference: Difference, shown: Labels) -> str:
    """Return a difference with its interval, as "-0.30 [-0.52, -0.08]"."""
    low, high = (shown.change(name, value) for value in (difference.low, difference.high))
    return f"{shown.change(name, difference.difference)} [{low}, {high}]"


def _groups(results: Results, shown: Labels) -> Iterator[Table]:
    for group in dict.fromkeys(one.group for one in results.groups):
        members = [one for one in results.groups if one.group == group]
        if len(members) > _LISTED_GROUPS or not members[0].metrics[results.engine]:
            continue
        name = next(iter(members[0].metrics[results.engine]))
        models = [model.name for model in results.models]
        rows = [[one.value, one.images, *(shown.value(name, one.metrics[m][name]) for m in models)] for one in members]
        columns = [group, "images", *models]
        yield table(f"{group}: {shown.label(name)}", columns, rows, numbers=columns[1:])


def _confusions(results: Results) -> Table:
    models = list(results.confusions[0].images)
    rows = [[one.label, one.predicted, *(one.images[model] for model in models)] for one in results.confusions[:5]]
    return table("most frequent confusions (images)", ["class", "taken for", *models], rows, numbers=models)
