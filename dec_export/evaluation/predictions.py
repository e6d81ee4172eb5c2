"""Predictions for many images in bulk: the likeliest classes of each image, and the class map of a segmentation.

They are computed as an evaluation is, in this process or on a cluster, and written while they are computed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from dec_export.bundle.store import Bundle
from dec_export.engines.base import RunOptions
from dec_export.errors import DataError
from dec_export.evaluation.chunks import Chunk, Key
from dec_export.evaluation.computers import computer_for
from dec_export.evaluation.conditions import Condition
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.layouts.class_index import number_classes
from dec_export.evaluation.options import DEFAULT_BATCH, EvaluationOptions
from dec_export.evaluation.plan import Plan, make_unlabelled_plan
from dec_export.evaluation.prediction_files import Row, new_table
from dec_export.evaluation.remaining import Clock
from dec_export.evaluation.samples import DataSet, Sample
from dec_export.evaluation.worker import Stage, Worker
from dec_export.progress import step
from dec_export.tasks.arrays import Array, Labels
from dec_export.tasks.base import Task
from dec_export.tasks.measures import softmax


@dataclass(frozen=True)
class PredictionOptions:
    """How predictions are computed.

    engine: the engine, or "auto". run: how it is run. data: how the images are read. limit: the number of images,
    taken evenly from all; None takes all. top_k: the number of classes for each image. batch: the images that the
    engine runs at once. workers: the threads that decode images. strict: whether an image that cannot be decoded is an
    error. cluster: the Ray cluster that computes, as in `EvaluationOptions`. force: whether a file may be overwritten.
    """

    engine: str = "auto"
    run: RunOptions = RunOptions()
    data: DataOptions = DataOptions()
    limit: int | None = None
    top_k: int = 5
    batch: int = DEFAULT_BATCH
    workers: int = 2
    strict: bool = False
    cluster: str | None = None
    force: bool = False

    def as_evaluation(self) -> EvaluationOptions:
        """Return the options of an evaluation that runs the same engine on the same images."""
        return EvaluationOptions(
            engine=self.engine,
            baselines=(),
            run=self.run,
            data=self.data,
            limit=self.limit,
            batch=self.batch,
            workers=self.workers,
            strict=self.strict,
            cluster=self.cluster,
        )


class Predictions(BaseModel):
    """What was predicted. images, skipped: the images with a prediction, and those that could not be decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    engine: str
    layout: str
    images: int
    skipped: int


class Predictor(Worker):
    """Computes the predictions of the plan's only model, and reads no labels."""

    def __init__(self, plan: Plan, top_k: int) -> None:
        super().__init__(plan)
        self.top_k = top_k

    def labels_of(self, sample: Sample, image: Image.Image) -> Labels:  # noqa: ARG002 - reads none
        return np.asarray(-1)

    def columns(self, stage: Stage, condition: Condition, clean: dict[str, Array]) -> dict[Key, NDArray[Any]]:  # noqa: ARG002 - there is one condition
        [model], [inputs] = self.models, stage.inputs
        found = predictions(self.task, model.logits(inputs, self.plan.batch), self.top_k)
        return {Key(condition.name, model.name, name): values for name, values in found.items()}


def predict(
    bundle: Bundle | str | Path,
    data: str | Path,
    out: str | Path,
    options: PredictionOptions = PredictionOptions(),
) -> Predictions:
    """Write a model's predictions for all images of a data set, with or without labels, to a file.

    out: a file whose name ends in .parquet or .csv; it is complete or absent. docs/evaluate-at-scale.md names its
    columns. Raises DataError when the images or the file cannot be used, and EngineError or BundleError when the model
    cannot be.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    wanted = options.as_evaluation()
    if options.top_k < 1:
        raise DataError(f"top_k must be at least 1, found {options.top_k}.")
    with step("list of images"):
        plan = make_unlabelled_plan(bundle, Path(data), wanted)
        labels = class_names(plan.data, plan.classes, options.data.class_index)
    worker = Predictor(plan, min(options.top_k, plan.classes))
    has_maps = worker.task.labels_pixels
    skipped = 0
    with (
        new_table(Path(out), has_maps=has_maps, top_k=worker.top_k, force=options.force) as table,
        computer_for(worker, options.workers, options.cluster) as computer,
    ):
        with step("models"):
            environment = computer.environment()
        with step(f"{len(plan.data):,} images"), closing(computer.chunks(plan.starts, ordered=True)) as chunks:
            clock = Clock(len(plan.data))
            for chunk in chunks:
                table.add(_rows(plan, chunk, labels))
                skipped += len(chunk.skipped)
                clock.tell(len(plan.samples_of(chunk.first)))
    return Predictions(
        file=str(out),
        engine=environment.engines[0],
        layout=plan.data.layout,
        images=len(plan.data) - skipped,
        skipped=skipped,
    )


def class_names(data: DataSet, classes: int, index: Path | None) -> tuple[str, ...]:
    """Return the name of each class of the model: from an index, from data that name all classes, or its number.

    Raises DataError when the index names another number of classes than the model has.
    """
    if index is not None:
        _, names = number_classes([], index)
        if len(names) != classes:
            raise DataError(
                f"The class index '{index}' names {len(names)} classes, and the model has {classes}: give the index of "
                "this model."
            )
        return names
    return data.classes if len(data.classes) == classes else tuple(map(str, range(classes)))


def predictions(task: Task, logits: Array, top_k: int) -> dict[str, NDArray[Any]]:
    """Return the predictions of N images.

    logits: (N, classes, ...). classes: (N, top_k) int32, the likeliest first, and of equal ones that of the smaller
    number. scores: (N, top_k) float32, the softmax of each class; for a task with a class for each pixel, the share of
    the pixels that have it. class_map: (N, H, W), for such a task only.
    """
    if not task.labels_pixels:
        return _best(softmax(logits), top_k)
    maps = logits.argmax(axis=1)
    shares = np.stack([np.bincount(classes.ravel(), minlength=logits.shape[1]) / classes.size for classes in maps])
    return {**_best(shares, top_k), "class_map": maps.astype(np.uint8 if logits.shape[1] <= 256 else np.uint16)}


def _best(scores: Array, top_k: int) -> dict[str, NDArray[Any]]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(scores, order, axis=1)
    return {"classes": order.astype(np.int32), "scores": best.astype(np.float32)}


def _rows(plan: Plan, chunk: Chunk, labels: tuple[str, ...]) -> Iterator[Row]:
    """Return a row for each image of a chunk, in order."""
    columns = {key.column: values for key, values in chunk.columns.items()}
    row_of = {int(number): row for row, number in enumerate(chunk.kept)}
    for number, sample in enumerate(plan.samples_of(chunk.first), chunk.first):
        if number not in row_of:
            yield Row(sample.name, error=chunk.skipped[sample.name])
            continue
        found = {name: values[row_of[number]] for name, values in columns.items()}
        classes, maps = found["classes"].tolist(), found.get("class_map")
        yield Row(
            sample.name,
            tuple(classes),
            tuple(labels[k] for k in classes),
            tuple(found["scores"].tolist()),
            None if maps is None else _png(maps),
        )


def _png(classes: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(classes).save(content, "PNG")
    return content.getvalue()
