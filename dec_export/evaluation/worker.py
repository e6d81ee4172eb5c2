"""The computation of chunks: decode images, change them, run every model, and keep the numbers of each image.

Two generators share the work, so that images are prepared while engines run: `Worker.stages` decodes and changes
images, and `Worker.chunks` runs the models on what it yields.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any  # columns have any dtype

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dec_export.data.images import decode_image
from dec_export.data.preprocessing import Preprocessing
from dec_export.errors import DataError, ImageError
from dec_export.evaluation.chunks import Chunk, Key
from dec_export.evaluation.conditions import Condition, warped
from dec_export.evaluation.models import Model
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.samples import Sample
from dec_export.parity.measures.invariance import PhiWarp
from dec_export.reference.warp import Phi
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array, Labels
from dec_export.tasks.measures import softmax

# The chunks whose images are decoded ahead of the one that is prepared.
DECODED_AHEAD = 2


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    sample: where it comes from. pixels: (H, W, 3) uint8 for each model, after the resize and crop of its preprocessing;
    models with equal ones share the array. labels: its class as a number without dimensions, or its mask (H, W).
    """

    sample: Sample
    pixels: tuple[NDArray[np.uint8], ...]
    labels: Labels


@dataclass(frozen=True)
class Batch:
    """The decoded images of the chunk that begins at image `start`.

    kept: (n,) the numbers of the images that could be decoded. skipped: the names of the others, with the reasons.
    """

    start: int
    pictures: tuple[Picture, ...]
    kept: NDArray[np.int64]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Stage:
    """The images of a batch under one condition, as the models read them.

    condition: the condition; None for a batch of which no image could be decoded. inputs: (N, 3, H, W) for each model;
    models with equal preprocessing share the array. labels: (N, ...). phi: the warp of each image, or None.
    last: whether the batch has no further condition.
    """

    batch: Batch
    condition: Condition | None
    inputs: tuple[NDArray[np.float32], ...]
    labels: Labels
    phi: Phi | None
    last: bool


class Worker:
    """Computes chunks of a plan. The models are loaded once, when the first chunk needs them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.task = task_named(plan.task)

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """The models of the plan."""
        return tuple(source.load() for source in self.plan.models)

    def decode(self, sample: Sample) -> Picture | str:
        """Return a decoded image, or the reason why it cannot be decoded. Raises the reason if the plan is strict."""
        try:
            image = sample.decode()
            crops = [model.preprocessing for model in self.models]
            found: dict[tuple[object, ...], NDArray[np.uint8]] = {}
            for crop in crops:
                if _crop_of(crop) not in found:
                    found[_crop_of(crop)] = crop.crop(image)
            return Picture(sample, tuple(found[_crop_of(crop)] for crop in crops), self.labels_of(sample, image))
        except (ImageError, DataError) as error:
            if self.plan.strict:
                raise
            return str(error)

    def labels_of(self, sample: Sample, image: Image.Image) -> Labels:
        """Return the class of an image as a number without dimensions, or its mask (H, W).

        Raises DataError when the mask cannot be used.
        """
        if sample.mask is None:
            return np.asarray(-1 if sample.label is None else sample.label)
        mask = _decode_mask(sample)
        if mask.size != image.size:
            raise DataError(
                f"The mask '{sample.mask.name}' has {mask.size[0]} x {mask.size[1]} pixels, expected those of its "
                f"image, {image.size[0]} x {image.size[1]}: give the mask of this image."
            )
        classes = self.models[0].preprocessing.crop_mask(mask)
        wrong = (classes >= self.plan.classes) & (
            classes != (-1 if self.plan.data.ignored is None else self.plan.data.ignored)
        )
        if wrong.any():
            raise DataError(
                f"The mask '{sample.mask.name}' holds the class {classes[wrong].max()}, and the model has "
                f"{self.plan.classes}: name the value that does not count with --ignore-index, or give other masks."
            )
        return classes

    def stages(self, starts: Iterable[int], threads: Executor) -> Iterator[Stage]:
        """Decode and prepare chunks for the engines, in order. Images are decoded in `threads`, some chunks ahead."""
        decoding: deque[tuple[int, list[Future[Picture | str]]]] = deque()
        for start in starts:
            decoding.append((start, [threads.submit(self.decode, sample) for sample in self.plan.samples_of(start)]))
            if len(decoding) > DECODED_AHEAD:
                yield from self._prepare(*decoding.popleft(), threads)
        while decoding:
            yield from self._prepare(*decoding.popleft(), threads)

    def _prepare(self, start: int, decoding: Sequence[Future[Picture | str]], threads: Executor) -> Iterator[Stage]:
        batch = _batch_of(start, self.plan.samples_of(start), [future.result() for future in decoding])
        if not batch.pictures:
            yield Stage(batch, None, (), np.zeros(0, np.int64), None, last=True)
            return
        labels = np.stack([picture.labels for picture in batch.pictures])
        for number, condition in enumerate(self.plan.conditions, 1):
            phi = _join([condition.warp_of(picture.sample.name) for picture in batch.pictures])
            inputs = self._inputs(condition, batch.pictures, phi, threads)
            moved = labels if phi is None else self.task.scale_labels(labels, PhiWarp(phi))
            yield Stage(batch, condition, inputs, moved, phi, last=number == len(self.plan.conditions))

    def _inputs(
        self, condition: Condition, pictures: Sequence[Picture], phi: Phi | None, threads: Executor
    ) -> tuple[NDArray[np.float32], ...]:
        """Return the input of each model; it is computed once for models with equal preprocessing."""
        crops = [model.preprocessing for model in self.models]
        found: list[NDArray[np.float32]] = []
        for number, crop in enumerate(crops):
            if crop in crops[:number]:
                found.append(found[crops.index(crop)])
                continue
            change = partial(_input_of, condition, crop, number)
            inputs = np.stack(list(threads.map(change, pictures)))
            found.append(inputs if phi is None else warped(inputs, phi))
        return tuple(found)

    def chunks(self, stages: Iterable[Stage]) -> Iterator[Chunk]:
        """Run the models on prepared images, and return the results of each chunk."""
        columns: dict[Key, NDArray[Any]] = {}
        clean: dict[str, Array] = {}
        for stage in stages:
            if stage.condition is not None:
                columns |= self.columns(stage, stage.condition, clean)
            if stage.last:
                yield Chunk(stage.batch.start, stage.batch.kept, columns, stage.batch.skipped)
                columns, clean = {}, {}

    def columns(self, stage: Stage, condition: Condition, clean: dict[str, Array]) -> dict[Key, NDArray[Any]]:
        """Return the columns of all models under one condition; `clean` collects the logits of unchanged images."""
        columns: dict[Key, NDArray[Any]] = {}
        first: Array | None = None
        for model, inputs in zip(self.models, stage.inputs, strict=True):
            logits = model.logits(inputs, self.plan.batch)
            found = dict(self.task.image_columns(logits, stage.labels, self.plan.data.ignored))
            if stage.phi is not None:
                warp = PhiWarp(stage.phi)
                found[self.task.metric.lower()] = self.task.invariance_terms(clean[model.name], logits, warp)
            if first is not None:
                found["distance"] = _distances(first, logits)
                found["agreement"] = _agreements(first, logits)
            first = logits if first is None else first
            clean.setdefault(model.name, logits)
            columns |= {Key(condition.name, model.name, name): values for name, values in found.items()}
        return columns


def _crop_of(preprocessing: Preprocessing) -> tuple[object, ...]:
    return preprocessing.size, preprocessing.crop_pct, preprocessing.interpolation, preprocessing.squash


def _decode_mask(sample: Sample) -> Image.Image:
    """Return a mask whose pixels are the numbers of classes: the indices of a palette, or the grey values."""
    assert sample.mask is not None
    image = decode_image(io.BytesIO(sample.mask.read()), sample.mask.name, convert=False)
    if image.mode not in ("P", "L"):
        raise DataError(
            f"The mask '{sample.mask.name}' has pixels of mode {image.mode}, expected a palette or grey PNG whose "
            "values are classes: convert it."
        )
    return image if image.mode == "L" else Image.fromarray(np.asarray(image))


def _join(phis: Sequence[Phi | None]) -> Phi | None:
    import torch

    found = [phi for phi in phis if phi is not None]
    if not found:
        return None
    return Phi(torch.cat([phi.x for phi in found]), torch.cat([phi.y for phi in found]))


def _input_of(condition: Condition, preprocessing: Preprocessing, number: int, picture: Picture) -> NDArray[np.float32]:
    """Return the input (3, H, W) of model `number` for one image, before its warp."""
    return preprocessing.normalise(condition.change_pixels(picture.pixels[number], picture.sample.name))


def _batch_of(start: int, samples: Sequence[Sample], decoded: Sequence[Picture | str]) -> Batch:
    kept = np.array([start + i for i, found in enumerate(decoded) if isinstance(found, Picture)], np.int64)
    skipped = {s.name: found for s, found in zip(samples, decoded, strict=True) if isinstance(found, str)}
    return Batch(start, tuple(found for found in decoded if isinstance(found, Picture)), kept, skipped)


def _distances(logits: Array, others: Array) -> NDArray[np.float64]:
    """Return the 2-norm of the difference of two softmaxes of each image, (N,), averaged over pixels if there are."""
    with np.errstate(invalid="ignore"):
        distances = np.linalg.norm(softmax(logits) - softmax(others), axis=1)
    return np.asarray(distances.reshape(len(distances), -1).mean(axis=1))


def _agreements(logits: Array, others: Array) -> NDArray[np.float64]:
    """Return the share of places, which are images or pixels, of each image where both predict the same class, (N,)."""
    finite = np.isfinite(logits).all(axis=1) & np.isfinite(others).all(axis=1)
    same = finite & (logits.argmax(axis=1) == others.argmax(axis=1))
    return np.asarray(same.reshape(len(same), -1).mean(axis=1))
