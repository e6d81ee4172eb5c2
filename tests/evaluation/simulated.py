"""Evaluations whose columns are given, without models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dec_export.evaluation.chunks import Chunk, Key
from dec_export.evaluation.conditions import Clean, Condition, LocalScaling
from dec_export.evaluation.gate import parse_limits
from dec_export.evaluation.models import ModelSource
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.results import Results, summarise
from dec_export.evaluation.samples import DataSet, FileSource, Sample
from dec_export.tasks import task_named
from dec_export.tasks.measures import softmax

CLASSES = ("cat", "dog", "<b>cow</b>")
Logits = NDArray[np.float32]


def samples_of(labels: Sequence[int | None], groups: Sequence[Mapping[str, str]] = ()) -> list[Sample]:
    """Return images that are nowhere, with these classes and groups."""
    return [
        Sample(f"{i:03d}.png", FileSource(Path(f"/nowhere/{i:03d}.png")), label, groups=groups[i] if groups else {})
        for i, label in enumerate(labels)
    ]


def plan_of(
    samples: Sequence[Sample],
    models: Sequence[str],
    conditions: Sequence[Condition] = (Clean(),),
    limits: Sequence[str] = (),
    task: str = "classification",
) -> Plan:
    """Return a plan with models that do not exist."""
    plan = Plan(
        task=task,
        classes=len(CLASSES),
        models=tuple(ModelSource(name, Path("bundle"), name) for name in models),
        data=DataSet(samples, "class-folders", CLASSES),
        conditions=tuple(conditions),
        batch=4,
        strict=False,
    )
    return replace(plan, limits=parse_limits(limits, plan.metrics))


def results_of(plan: Plan, logits: Mapping[str, Logits], skipped: Mapping[str, str] | None = None) -> Results:
    """Return the results of models with these logits (N, classes) under every condition."""
    first = logits[plan.models[0].name]
    columns = {}
    labels = np.array([-1 if one.label is None else one.label for one in plan.data.samples])
    for condition in plan.conditions:
        for name, found in logits.items():
            own = dict(task_named(plan.task).image_columns(found, labels, None))
            if isinstance(condition, LocalScaling):
                own[plan.invariance] = np.full(len(found), condition.strength)
            if found is not first:
                with np.errstate(invalid="ignore"):
                    own["distance"] = np.linalg.norm(softmax(found) - softmax(first), axis=1)
                own["agreement"] = (found.argmax(axis=1) == first.argmax(axis=1)).astype(float)
            columns |= {Key(condition.name, name, column): values for column, values in own.items()}
    chunk = Chunk(0, np.arange(len(labels)), columns, dict(skipped or {}))
    return summarise(plan, [chunk], [model.engine for model in plan.models])


def logits_for(classes: Sequence[int], strength: float = 4.0) -> Logits:
    """Return the logits of a model that predicts these classes."""
    return np.float32(strength) * np.eye(len(CLASSES), dtype=np.float32)[np.asarray(classes)]
