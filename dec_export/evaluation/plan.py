"""The plan of an evaluation: everything that a process needs to compute any chunk of it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dec_export.bundle.store import MANIFEST, Bundle
from dec_export.errors import DataError
from dec_export.evaluation.conditions import Clean, Condition, Corruption, LocalScaling
from dec_export.evaluation.corruptions.registry import corruption_names
from dec_export.evaluation.environment import Environment
from dec_export.evaluation.gate import Limit, conditions_of, parse_limits
from dec_export.evaluation.layouts.registry import read_data
from dec_export.evaluation.models import ModelSource, model_sources
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.samples import DataSet, FileSource, Sample, Source
from dec_export.tasks import task_named
from dec_export.tasks.scores import Metric, mean_of


@dataclass(frozen=True)
class Plan:
    """The images, the models and the conditions of an evaluation.

    task, classes: the task of the models, and how many classes they have. batch: the images of one chunk, which the
    engines run at once. strict: whether an image that cannot be decoded is an error. limits: the user's gate.
    """

    task: str
    classes: int
    models: tuple[ModelSource, ...]
    data: DataSet
    conditions: tuple[Condition, ...]
    batch: int
    strict: bool
    limits: tuple[Limit, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that the data give: those of the task if they have labels, and its measure of invariance."""
        task = task_named(self.task)
        column = task.metric.lower()
        labelled = task.metrics() if any(sample.is_labelled for sample in self.data.samples) else ()
        return (*labelled, Metric(column, task.metric, mean_of(column), False, False, column))

    @property
    def invariance(self) -> str:
        """The name of the measure of invariance, which only conditions that warp have."""
        return task_named(self.task).metric.lower()

    @property
    def starts(self) -> range:
        """The number of the first image of every chunk."""
        return range(0, len(self.data), self.batch)

    def samples_of(self, start: int) -> Sequence[Sample]:
        """Return the images of the chunk that begins at an image."""
        return self.data.samples[start : start + self.batch]

    def fingerprint(self, environment: Environment) -> str:
        """Return a hash of everything that the numbers depend on, by which an interrupted evaluation is found again.

        Of the images it covers names, labels, sizes and times of change, and not the content, which would have to be
        read; of the bundles the manifests, which hold the hashes of all files.
        """
        digest = hashlib.sha256()
        stamp = functools.cache(_stamp)
        for sample in self.data.samples:
            digest.update(f"{_line(sample, stamp)}\n".encode("utf-8", "surrogateescape"))
        parts = {
            "models": [[m.name, m.engine, repr(m.run), _digest(m.bundle / MANIFEST)] for m in self.models],
            "environment": repr(environment),
            "images": digest.hexdigest(),
            "classes": self.classes,
            "ignored": self.data.ignored,
            "conditions": [repr(condition) for condition in self.conditions],
            "batch": self.batch,
            "strict": self.strict,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _line(sample: Sample, stamp: Callable[[Path], str]) -> str:
    """Return what an image's numbers depend on; the groups matter for summaries alone."""
    parts = [_of_source(source, stamp) for source in (sample.image, sample.mask) if source is not None]
    return "\t".join([sample.name, str(sample.label), *parts])


def _of_source(source: Source, stamp: Callable[[Path], str]) -> str:
    if isinstance(source, FileSource):
        return f"{source.name} {stamp(source.path)}"
    return f"{source.name} {source.offset} {source.size} {stamp(source.archive)}"


def _stamp(path: Path) -> str:
    """Return the size of a file and the time of its last change in nanoseconds, or why there is none."""
    try:
        found = path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"
    except OSError as error:
        return str(error.strerror)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_plan(bundle: Bundle, data: Path, options: EvaluationOptions) -> Plan:
    """Return the plan of an evaluation of a bundle on the labelled data set at a path.

    Raises DataError when the data cannot be read or do not fit the model, and EngineError or BundleError when a model
    cannot be used.
    """
    plan = make_unlabelled_plan(bundle, data, options)
    _check_labels(plan.data, plan.task, plan.classes)
    if options.max_drop and len(plan.models) < 2:
        raise DataError(
            "A limit compares the engine with its first baseline, which is the engine itself: name one more."
        )
    limits = parse_limits(options.max_drop, plan.metrics)
    for limit in limits:
        conditions_of(limit, plan.conditions, plan.invariance)
    return replace(plan, limits=limits)


def make_unlabelled_plan(bundle: Bundle, data: Path, options: EvaluationOptions) -> Plan:
    """Return the plan for a data set whose labels do not matter. Raises the errors of `make_plan` except for labels."""
    options.check()
    recipe = bundle.recipe
    found = _limited(read_data(data, options.data), options.limit)
    if not found.samples:
        raise DataError(f"'{data}' holds no images: expected JPEG or PNG files.")
    sources = model_sources(bundle, options.engine, options.baselines, options.engine_run)
    conditions = (
        Clean(),
        *(LocalScaling(strength, options.seed) for strength in options.strengths),
        *(
            Corruption(corruption, severity, options.seed)
            for corruption in corruption_names(options.corruptions)
            for severity in dict.fromkeys(options.severities)
        ),
    )
    return Plan(
        task=recipe.task,
        classes=recipe.backbone.num_classes,
        models=sources,
        data=found,
        conditions=conditions,
        batch=options.batch,
        strict=options.strict,
    )


def _limited(data: DataSet, limit: int | None) -> DataSet:
    """Return the data set, or `limit` of its images that lie evenly in it, since neighbours are often of one class."""
    if limit is None or limit >= len(data):
        return data
    chosen = np.linspace(0, len(data) - 1, limit).round().astype(int)
    return DataSet([data.samples[i] for i in chosen], data.layout, data.classes, data.ignored)


def _check_labels(data: DataSet, task: str, classes: int) -> None:
    """Raise DataError when labels are missing, of another task, or of classes that the model does not have."""
    dense = task_named(task).must_unwarp
    first = data.samples[0]
    if dense != (first.mask is not None):
        wanted = "masks of the classes of all pixels" if dense else "a class for each image"
        raise DataError(
            f"The model is for {task}, which needs {wanted}, and the data (layout {data.layout}) have none: give other "
            "data, or another bundle."
        )
    if not data.is_labelled:
        raise DataError(f"The data (layout {data.layout}) have no labels: give a table, or folders of classes.")
    if data.classes and len(data.classes) < classes:
        raise DataError(
            f"The data have {len(data.classes)} classes, fewer than the {classes} of the model, so their numbers are "
            "not known: give a class index (--class-index) with all classes of the model."
        )
    largest = max((sample.label for sample in data.samples if sample.label is not None), default=-1)
    if max(largest + 1, len(data.classes)) > classes:
        raise DataError(
            f"The data have {max(largest + 1, len(data.classes))} classes, more than the {classes} of the model: give "
            "a class index (--class-index) that numbers the classes as the model does."
        )
