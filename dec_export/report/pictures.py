"""The pictures of a report: images, their warps by the canonicalizers, and the model's predictions for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dec_export.data.digits import BACKGROUND
from dec_export.names import LOGITS, layer_count, phi_name
from dec_export.parity.measures.invariance import invariance_of
from dec_export.parity.numbers import number
from dec_export.parity.references import References
from dec_export.parity.report import SHOWN_IMAGES, Report
from dec_export.reference.warp import Phi, dense_grid, warp
from dec_export.tasks import task_named
from dec_export.tasks.arrays import Array, Labels

Pixels = NDArray[np.uint8]

_DISPLAY_SIZE = 224
# Images of up to this number of pixels are drawn with hard edges and stored without loss.
_SMALL = 96
_GRID_LINES = 15
_POINTS_PER_LINE = 33
_OVERLAY = 0.62
# The colours of Okabe and Ito without black, used as they are, then darker, then lighter; every class has a number too.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_SHADES = (1.0, 0.62, 1.45)
# A class is numbered in the picture if its share of the image is larger than this.
_NOTEWORTHY = 0.004
_LABEL_GRID = 56
# The distance of a number from the border of the picture, as a share of the picture's size.
_MARGIN = 0.06


class Mark(NamedTuple):
    """The number of a class, written into its region; x and y are in pixels of the image."""

    x: float
    y: float
    text: str


class Picture(NamedTuple):
    """One drawing of `size` x `size` units.

    title, alt: the caption, and a description in words.
    layers: the images that lie on top of each other, each as (data URI, opacity).
    lines: an SVG path on top of the layers.
    marks: numbers of classes on top of the layers.
    """

    title: str
    alt: str
    size: int
    layers: list[tuple[str, float]]
    lines: str = ""
    marks: tuple[Mark, ...] = ()

    @property
    def small(self) -> bool:
        """Whether the picture is drawn with hard edges."""
        return self.size <= _SMALL


class Prediction(NamedTuple):
    """A model's predictions for an image and for its copy, and their difference, in words."""

    who: str
    plain: str
    scaled: str
    difference: str


class Example(NamedTuple):
    """One image of the proof, with its pictures and the models' predictions."""

    name: str
    pictures: list[Picture]
    predictions: list[Prediction]


class Class(NamedTuple):
    """An entry of the legend; its colour is None for a class that is not coloured."""

    number: int
    colour: str | None
    note: str


class _Model(NamedTuple):
    """The logits of the float64 reference or of an engine on the shown images and on their copies."""

    name: str
    logits: Array
    scaled: Array


class _Painter(NamedTuple):
    """The conversion of normalised arrays to pixels; mean and std are (3, 1, 1) float64."""

    mean: Array
    std: Array

    def pixels(self, array: Array) -> Pixels:
        """Return the pixels (H, W, 3), from 0 to 255, of a normalised array (3, H, W)."""
        unit = np.nan_to_num(array.astype(np.float64) * self.std + self.mean)
        return np.round(255 * unit.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)


def examples(
    references: References, reports: Sequence[Report], mean: Sequence[float], std: Sequence[float]
) -> tuple[list[Example], list[Class]]:
    """Return the first images with each model's predictions, and the legend of class maps if the task has them.

    mean, std: the mean and standard deviation of the preprocessing, (3,) each.
    """
    painter = _Painter(*(np.asarray(values, dtype=np.float64)[:, None, None] for values in (mean, std)))
    models = list(_models(references, reports))
    legend = _legend(references, models)
    found = []
    for i, name in enumerate(references.inputs.images.names[:SHOWN_IMAGES]):
        pictures = list(_warps(references, models[0], i, painter))
        pictures += _class_maps(references, models, i, painter, legend)
        found.append(Example(name, pictures, list(_predictions(references, models, i))))
    return found, legend


def _models(references: References, reports: Sequence[Report]) -> Iterator[_Model]:
    shown = slice(SHOWN_IMAGES)
    yield _Model("float64 reference", references.outputs.fp64[LOGITS][shown], references.scaled_logits[shown])
    for report in reports:
        if report.shown is not None:
            yield _Model(report.engine, report.shown.logits, report.shown.logits_scaled)


def _warps(references: References, truth: _Model, i: int, painter: _Painter) -> Iterator[Picture]:
    """Yield the input, each canonicalizer's grid over the input and its warped input, and the locally scaled copy."""
    name, image = references.inputs.images.names[i], references.inputs.images.array[i]
    captions = (task_named(references.recipe.task).caption(logits[i]) for logits in (truth.logits, truth.scaled))
    classes = [f": {caption}" if caption else "" for caption in captions]
    yield plain(f"input{classes[0]}", f"The image {name} as the model sees it", painter.pixels(image))
    for layer in range(layer_count(references.outputs.fp64)):
        phi = _phi_of(references, layer, i)
        warped = warp(phi, torch.from_numpy(image[None]).double())[0].numpy()
        title = f"canonicalizer {layer}"
        grid = plain(f"{title}: sampling grid", f"Grid lines of {title} over {name}", painter.pixels(image))
        yield grid._replace(lines=_grid_lines(phi, image.shape[-1]))
        yield plain(f"{title}: warped", f"{name} as {title} warps it", painter.pixels(warped))
    scaled = painter.pixels(references.inputs.scaled[i])
    yield plain(f"locally scaled copy{classes[1]}", f"{name} with seeded local changes of scale", scaled)


def _phi_of(references: References, layer: int, i: int) -> Phi:
    axes = (references.outputs.fp64[phi_name(axis, layer)][i : i + 1] for axis in ("x", "y"))
    return Phi(*(torch.from_numpy(axis).double() for axis in axes))


def _grid_lines(phi: Phi, size: int) -> str:
    """Return lines of the dense grid (docs/semantics.md, section 1, steps 1 to 5) as an SVG path in pixels.

    The pixels of the warped image read the input at these coordinates, so the warped image is enlarged where the lines
    are close together.
    """
    grid = dense_grid(phi, (size, size))[0].numpy() * (size - 1) + 0.5
    if not np.isfinite(grid).all():
        return ""
    lines, points = (np.linspace(0, size - 1, n).round().astype(int) for n in (_GRID_LINES, _POINTS_PER_LINE))
    across = grid[:, lines][:, :, points]
    down = grid[:, :, lines][:, points].transpose(0, 2, 1)
    return "".join(_polyline(line.T) for direction in (across, down) for line in direction.transpose(1, 0, 2))


def _polyline(points: Array) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _predictions(references: References, models: Sequence[_Model], i: int) -> Iterator[Prediction]:
    task, one = references.recipe.task, slice(i, i + 1)
    phi = Phi(*(axis[one] for axis in references.inputs.phi))
    truth = models[0]
    for model in models:
        difference = float(invariance_of(task, model.logits[one], model.scaled[one], phi)[0])
        pairs = ((model.logits[one], truth.logits[one]), (model.scaled[one], truth.scaled[one]))
        words = [_words(task, found[0], expected[0], model is truth) for found, expected in pairs]
        yield Prediction(model.name, words[0], words[1], number(difference, ".4f"))


def _words(task: str, logits: Array, truth: Array, is_truth: bool) -> str:
    """Return a model's prediction for one image in words; that of an engine is compared with the reference's."""
    if not np.isfinite(logits).all():
        return "not finite"
    return task_named(task).describe(logits) if is_truth else task_named(task).compare(logits, truth)


def _class_maps(
    references: References, models: Sequence[_Model], i: int, painter: _Painter, legend: Sequence[Class]
) -> Iterator[Picture]:
    """Yield each model's classes over the image, then over its copy; there are none if the task has no class maps."""
    name, class_map = references.inputs.images.names[i], task_named(references.recipe.task).class_map
    for what, array, logits_of in (
        ("input", references.inputs.images.array[i], [model.logits[i] for model in models]),
        ("locally scaled copy", references.inputs.scaled[i], [model.scaled[i] for model in models]),
    ):
        for model, logits in zip(models, logits_of, strict=True):
            title, alt = f"{model.name}, {what}", f"Classes that the {model.name} sees in {name}, {what}"
            if (classes := class_map(logits)) is None:
                return
            if not np.isfinite(logits).all():
                yield plain(f"{title}: not finite", f"{alt}: not finite", painter.pixels(array))
                continue
            yield overlaid(plain(title, f"{alt}: {_listed(classes)}", painter.pixels(array)), classes, legend)


def overlaid(base: Picture, classes: Labels, legend: Sequence[Class]) -> Picture:
    """Return a picture with a class map (H, W) over it in the legend's colours."""
    layers = [*base.layers, (_paint(classes, legend), _OVERLAY)]
    return base._replace(layers=layers, marks=tuple(_marks(classes, legend)))


def _listed(classes: Labels) -> str:
    indices, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    return ", ".join(f"{indices[k]} ({counts[k] / classes.size:.0%})" for k in order)


def _legend(references: References, models: Sequence[_Model]) -> list[Class]:
    """Return the classes that models predict in the shown images, the most frequent first; background has no colour.

    The legend is empty if the task has no class maps.
    """
    class_map = task_named(references.recipe.task).class_map
    every = [logits for model in models for logits in (*model.logits, *model.scaled) if np.isfinite(logits).all()]
    drawn = [classes.ravel() for classes in map(class_map, every) if classes is not None]
    return legend_of(drawn, BACKGROUND if references.recipe.evaluation.data == "digits" else None)


def legend_of(drawn: Sequence[Labels], background: int | None) -> list[Class]:
    """Return the classes of class maps of any shape, the most frequent first; `background` has no colour."""
    maps = np.concatenate([classes.ravel() for classes in drawn] or [np.empty(0, dtype=np.int64)])
    indices, counts = np.unique(maps, return_counts=True)
    entries: list[Class] = []
    # Classes beyond this number would repeat the colours.
    for k in np.argsort(-counts, kind="stable")[: len(_COLOURS) * len(_SHADES)]:
        share = counts[k] / maps.size
        if indices[k] == background:
            entries.append(Class(int(indices[k]), None, f"background, not coloured ({share:.1%})"))
        else:
            coloured = sum(entry.colour is not None for entry in entries)
            entries.append(Class(int(indices[k]), _colour(coloured), f"{share:.1%}"))
    return entries


def _colour(n: int) -> str:
    base, shade = _COLOURS[n % len(_COLOURS)], _SHADES[n // len(_COLOURS) % len(_SHADES)]
    red, green, blue = (min(255, round(int(base[k : k + 2], 16) * shade)) for k in (1, 3, 5))
    return f"#{red:02X}{green:02X}{blue:02X}"


def _paint(classes: Labels, legend: Sequence[Class]) -> str:
    """Return a class map (H, W) as a transparent PNG in the legend's colours."""
    pixels = np.zeros((*classes.shape, 4), dtype=np.uint8)
    for entry in legend:
        if entry.colour is not None:
            pixels[classes == entry.number] = [*bytes.fromhex(entry.colour[1:]), 255]
    return _encode(Image.fromarray(pixels), "PNG")


def _marks(classes: Labels, legend: Iterable[Class]) -> Iterator[Mark]:
    """Yield the number of each coloured class at the innermost place of its region; classes are (H, W)."""
    step = max(1, round(len(classes) / _LABEL_GRID))
    coarse = classes[::step, ::step]
    for entry in legend:
        region = coarse == entry.number
        if entry.colour is not None and region.mean() > _NOTEWORTHY:
            y, x = ((place + 0.5) * step for place in _innermost(region))
            low, high = _MARGIN * len(classes), (1 - _MARGIN) * len(classes)
            yield Mark(min(max(x, low), high), min(max(y, low), high), str(entry.number))


def _innermost(region: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the place of a non-empty region that is furthest from its border, which repeated erosion finds."""
    left = region
    while (eroded := _erode(left)).any():
        left = eroded
    rows, columns = np.nonzero(left)
    middle = len(rows) // 2
    return int(rows[middle]), int(columns[middle])


def _erode(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(region, 1)
    return np.asarray(padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def plain(title: str, alt: str, pixels: Pixels) -> Picture:
    """Return the drawing of the pixels of a square image (H, H, 3)."""
    size = len(pixels)
    image = Image.fromarray(pixels)
    if size > _DISPLAY_SIZE:
        image = image.resize((_DISPLAY_SIZE, _DISPLAY_SIZE), Image.Resampling.LANCZOS)
    return Picture(title, alt, size, [(_encode(image, "PNG" if size <= _SMALL else "JPEG"), 1.0)])


def _encode(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return data_uri(f"image/{kind.lower()}", buffer.getvalue())


def data_uri(mime: str, content: bytes) -> str:
    """Return `content` as an address that needs no network."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
