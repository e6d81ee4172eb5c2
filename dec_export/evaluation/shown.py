"""The pictures of the images on which the engine and its baseline differ most, which are decoded again for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dec_export.evaluation.facts import Disagreement, Results
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.worker import Picture, Worker
from dec_export.parity.numbers import number
from dec_export.report import pictures
from dec_export.tasks.arrays import Labels


class Example(NamedTuple):
    """One image with its pictures, and what is known about it in words."""

    name: str
    facts: Mapping[str, str]
    pictures: Sequence[pictures.Picture]


def examples(plan: Plan, results: Results) -> tuple[list[Example], list[pictures.Class]]:
    """Return the images on which the models differ most, and the legend of their class maps if the task has them.

    An image that cannot be decoded any more has no picture.
    """
    samples = {sample.name: sample for sample in plan.data.samples}
    worker = Worker(replace(plan, strict=False))
    decoded = [worker.decode(samples[one.name]) for one in results.disagreements]
    maps = [_maps(worker, one) if isinstance(one, Picture) else {} for one in decoded]
    legend = pictures.legend_of([found for one in maps for found in one.values()], None) if any(maps) else []
    found = []
    for facts, picture, classes in zip(results.disagreements, decoded, maps, strict=True):
        drawn = list(_drawn(facts, picture, classes, legend)) if isinstance(picture, Picture) else []
        found.append(Example(facts.name, _facts(facts), drawn))
    return found, legend


def _facts(one: Disagreement) -> dict[str, str]:
    label = {} if one.label is None else {"label": one.label}
    pixels = {} if one.predictions else {"pixels of the same class": f"{one.agreement:.2%}"}
    return {**label, **one.predictions, **pixels, "distance": number(one.distance, ".2e")}


def _maps(worker: Worker, picture: Picture) -> dict[str, Labels]:
    """Return the classes of all pixels, as labelled and as the engine and its baseline see them."""
    if not picture.labels.ndim:
        return {}
    found = {"labels": picture.labels}
    for pixels, model in zip(picture.pixels[:2], worker.models[:2], strict=True):
        logits = model.logits(model.preprocessing.normalise(pixels)[None], worker.plan.batch)[0]
        classes = worker.task.class_map(logits)
        if classes is not None and np.isfinite(logits).all():
            found[model.name] = classes
    return found


def _drawn(
    facts: Disagreement, picture: Picture, maps: Mapping[str, Labels], legend: Sequence[pictures.Class]
) -> Iterator[pictures.Picture]:
    pixels = picture.pixels[0]
    yield pictures.plain("input", f"The image {facts.name} as the model sees it", pixels)
    for who, classes in maps.items():
        base = pictures.plain(who, f"The classes of {facts.name}: {who}", pixels)
        yield pictures.overlaid(base, classes, legend)
