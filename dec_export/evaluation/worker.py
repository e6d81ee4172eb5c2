"""The computation of one chunk: decode its images, change them, run every model, and keep the numbers of each image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    sample: where it comes from. pixels: (H, W, 3) uint8 for each model, after the resize and crop of its preprocessing;
    models with equal ones share the array. labels: its class as a number without dimensions, or its mask (H, W).
    """

    sample: Sample
    pixels: tuple[NDArray[np.uint8], ...]
    labels: Labels


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
            return Picture(sample, tuple(found[_crop_of(crop)] for crop in crops), self._labels(sample, image))
        except (ImageError, DataError) as error:
            if self.plan.strict:
                raise
            return str(error)

    def _labels(self, sample: Sample, image: Image.Image) -> Labels:
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

    def submit(self, start: int, threads: Executor) -> list[Future[Picture | str]]:
        """Begin to decode the images of a chunk in other threads."""
        return [threads.submit(self.decode, sample) for sample in self.plan.samples_of(start)]

    def compute(self, start: int, decoded: Sequence[Picture | str]) -> Chunk:
        """Return the results of the chunk that begins at image `start`, whose decoded images are given."""
        samples = self.plan.samples_of(start)
        pictures = [picture for picture in decoded if isinstance(picture, Picture)]
        kept = np.array([start + i for i, p in enumerate(decoded) if isinstance(p, Picture)], np.int64)
        skipped = {s.name: p for s, p in zip(samples, decoded, strict=True) if isinstance(p, str)}
        columns: dict[Key, NDArray[Any]] = {}
        clean: dict[str, Array] = {}
        if pictures:
            for condition in self.plan.conditions:
                columns |= self._under(condition, pictures, clean)
        return Chunk(start, kept, columns, skipped)

    def _under(
        self, condition: Condition, pictures: Sequence[Picture], clean: dict[str, Array]
    ) -> dict[Key, NDArray[Any]]:
        """Return the columns of all models under one condition; `clean` collects the logits of unchanged images."""
        phi = _join([condition.warp_of(picture.sample.name) for picture in pictures])
        labels = np.stack([picture.labels for picture in pictures])
        if phi is not None:
            labels = self.task.scale_labels(labels, PhiWarp(phi))
        columns: dict[Key, NDArray[Any]] = {}
        first: Array | None = None
        for number, model in enumerate(self.models):
            logits = model.logits(_inputs(condition, pictures, phi, number, model), self.plan.batch)
            found = dict(self.task.image_columns(logits, labels, self.plan.data.ignored))
            if phi is not None:
                found[self.task.metric.lower()] = self.task.invariance_terms(clean[model.name], logits, PhiWarp(phi))
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


def _inputs(
    condition: Condition, pictures: Sequence[Picture], phi: Phi | None, number: int, model: Model
) -> NDArray[np.float32]:
    inputs = []
    for i, picture in enumerate(pictures):
        pixels = condition.change_pixels(picture.pixels[number], picture.sample.name)
        one = model.preprocessing.normalise(pixels)
        inputs.append(one if phi is None else warped(one, Phi(phi.x[i : i + 1], phi.y[i : i + 1])))
    return np.stack(inputs)


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
