"""The curves of an evaluation: metrics against the strength of a change, and against groups of images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from dec_export.evaluation.facts import ConditionFacts, GroupFacts, Results
from dec_export.evaluation.labels import Labels
from dec_export.evaluation.models import REFERENCE
from dec_export.parity.presentation import Curve, Curves
from dec_export.report.figures import Owned

# The metrics of each model at one place of the x axis.
_Point = tuple[float, Mapping[str, Mapping[str, float]]]


def curves(results: Results) -> Iterator[list[Owned]]:
    """Yield the figures of every picture; those of one picture belong to different models."""
    shown = Labels(results.task)
    clean = next((condition for condition in results.conditions if condition.family == "clean"), None)
    for family in dict.fromkeys(condition.family for condition in results.conditions if condition is not clean):
        members = [condition for condition in results.conditions if condition.family == family]
        yield from _of_family(results, family, [clean, *members] if clean else members, shown)
    for group in dict.fromkeys(one.group for one in results.groups):
        yield from _of_group(results, group, shown)


def _of_family(
    results: Results, family: str, members: Sequence[ConditionFacts], shown: Labels
) -> Iterator[list[Owned]]:
    measured = members[-1].metrics[results.engine]
    for name in _chosen(list(measured), shown):
        points = [(one.strength, _with_zero(one, name, shown)) for one in members]
        yield from _picture(results, f"strength of {family}", name, sorted(points, key=lambda point: point[0]), shown)


def _chosen(names: Sequence[str], shown: Labels) -> list[str]:
    """Return the metrics that are drawn: the first, and the measure of invariance."""
    return list(dict.fromkeys([*names[:1], *(name for name in names if name == shown.invariance)]))


def _with_zero(condition: ConditionFacts, name: str, shown: Labels) -> Mapping[str, Mapping[str, float]]:
    """Return the metrics of a condition. Unchanged images differ from themselves by 0, which is no measurement."""
    if name != shown.invariance or condition.family != "clean":
        return condition.metrics
    return {model: {name: 0.0} for model in condition.metrics}


def _of_group(results: Results, group: str, shown: Labels) -> Iterator[list[Owned]]:
    members = [one for one in results.groups if one.group == group]
    places = [_place(one) for one in members]
    names = list(members[0].metrics[results.engine])[:1]
    if None not in places and names:
        points = [(place, one.metrics) for place, one in zip(places, members, strict=True) if place is not None]
        yield from _picture(results, group, names[0], points, shown)


def _place(group: GroupFacts) -> float | None:
    try:
        return float(group.value)
    except ValueError:
        return None


def _picture(
    results: Results, x_label: str, name: str, points: Sequence[_Point], shown: Labels
) -> Iterator[list[Owned]]:
    if len(points) < 2:
        return
    x = tuple(place for place, _ in points)
    alt = f"{shown.label(name)} against {x_label}: " + "; ".join(
        f"{model.name} {_in_words(points, model.name, name, shown)}" for model in results.models
    )
    owned = []
    for place, model in enumerate(results.models):
        y = tuple(found[model.name].get(name, math.nan) for _, found in points)
        # The reference is wide and pale, because the line of a correct engine lies on top of it.
        whose, label = ("reference", REFERENCE) if model.name == REFERENCE else ("engine", "")
        curve = Curve(whose="reference" if whose == "reference" else "engine", label=label, x=x, y=y)
        figure = Curves(
            key=f"{x_label} {name}",
            alt=alt,
            curves=(curve,),
            x_label=x_label,
            y_label=shown.label(name),
            percent=shown.is_percent(name),
            ticks=x if len(x) <= 10 else None,
        )
        owned.append(Owned(model.name, place, figure))
    yield owned


def _in_words(points: Sequence[_Point], model: str, name: str, shown: Labels) -> str:
    return ", ".join(f"{shown.value(name, found[model].get(name, math.nan))} at {place:g}" for place, found in points)
