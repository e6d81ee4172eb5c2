"""The measure of whether the feature map of a block turns, flips and scales with the image.

Let f1 be the model up to the block. For each g of `reference.groups.ACTIONS`, the relative error
|| f1(g x) - rho_g f1(x) || / || f1(x) || is measured, and the cosine between the two maps at each patch.
Source: arXiv 2603.06693.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dec_export.formats import tolerance_of
from dec_export.names import feature_name, map_name
from dec_export.parity import gate
from dec_export.parity.batches import REFERENCE_BATCH
from dec_export.parity.measures.base import Frozen, Header, Measure, Section
from dec_export.parity.measures.means import share
from dec_export.parity.numbers import Number, finite_mean, number
from dec_export.parity.presentation import Curve, Curves, Figure, Table
from dec_export.parity.runs import EngineRun, ReferenceRuns, Run
from dec_export.reference.groups import ACTIONS, Similarity
from dec_export.tasks.arrays import Array

# The error is a property of the model that differs little between photographs, so a few images show it.
IMAGES = 4

_COLUMNS = ("image is", "error, reference", "error, engine", "unaligned", "cosine, reference", "cosine, engine")

Images = NDArray[np.float32]
# A function from images (N, 3, H, W) float32 to the maps (N, C, h, w) of every block that is shown, by its number.
Maps = Callable[[NDArray[np.float32]], Mapping[int, Tensor]]


@dataclass(frozen=True)
class Terms:
    """The terms of each image for one block and one g.

    error: the relative error; its norms are root mean squares over patches, because some patches of f1(x) may not be
    compared.
    unaligned: the error of a map that does not follow the image, with f1(x) in place of rho_g f1(x).
    cosine: the mean cosine over the patches that are compared.
    """

    error: Float64[Array, " images"]
    unaligned: Float64[Array, " images"]
    cosine: Float64[Array, " images"]


# The terms by block, then by the name of g. An action after which no patch can be compared is left out.
TermsOfMaps = dict[int, dict[str, Terms]]


def move(images: Float32[Images, "images 3 h w"]) -> dict[str, NDArray[np.float32]]:
    """Return g x for every g, computed in float64 and rounded once, so that every engine reads identical images."""
    exact = torch.from_numpy(images).double()
    return {name: g.act(exact).float().contiguous().numpy() for name, g in ACTIONS.items()}


def measure(maps: Maps, images: NDArray[np.float32], moved: Mapping[str, NDArray[np.float32]]) -> TermsOfMaps:
    """Return the terms of every block that `maps` shows; `moved` is the result of `move` for the images."""
    here = maps(images)
    found: TermsOfMaps = {place: {} for place in here}
    for name, copies in moved.items():
        there = maps(copies)
        for place, features in here.items():
            if ACTIONS[name].covers(*features.shape[-2:]).any():
                found[place][name] = compare(ACTIONS[name], features, there[place])
    return found


def compare(
    g: Similarity, features: Float[Tensor, "images c h w"], features_moved: Float[Tensor, "images c h w"]
) -> Terms:
    """Return the terms of maps f1(x) and f1(g x).

    A scale below 1 moves patches from outside the image into it. Such patches are left out, and at least one patch must
    remain.
    """
    features, features_moved = features.double(), features_moved.double()
    used = g.covers(*features.shape[-2:])
    aligned, found, still = (values[..., used] for values in (g.act(features), features_moved, features))
    size = _norm(features.flatten(2))
    return Terms(
        error=_share(_norm(found - aligned), size),
        unaligned=_share(_norm(found - still), size),
        cosine=torch.cosine_similarity(found, aligned, dim=1).mean(dim=1).numpy(),
    )


def _norm(values: Float[Tensor, "images c patches"]) -> Float[Tensor, " images"]:
    """Return the root mean square of the patches' norms."""
    return values.square().sum(dim=1).mean(dim=1).sqrt()


def _share(difference: Tensor, size: Tensor) -> Array:
    """Return the ratio of difference and size, which is zero for a map that is and stays zero."""
    return torch.where(difference == 0, difference, difference / size).numpy()


@dataclass(frozen=True)
class EquivarianceReference:
    """The results of the reference with which engines are compared.

    images, moved: the images, and their copies g x by the name of g.
    fp64, in_precision: the terms in float64 and in the engines' precision.
    tap: the block whose map is an output of the model, or None.
    as_map: a function that converts the number and the features of a block to the map that its tap shows.
    tolerance: the deviation that always passes, even if rounding does not explain it.
    """

    images: NDArray[np.float32]
    moved: dict[str, NDArray[np.float32]]
    fp64: TermsOfMaps
    in_precision: TermsOfMaps
    tap: int | None
    as_map: Callable[[int, Tensor], Tensor]
    tolerance: float


class ActionFacts(Frozen):
    """The relative error and the cosine of one block's map under one g, of the float64 reference and of an engine.

    deviation: |engine - reference| / |reference|.
    bound: the largest deviation that passes. It is the tolerance or, if that is larger, the deviation that rounding
    explains: the gate's factor times the change of the reference's terms in the engine's precision.
    unaligned: the error of a map that does not follow the image.
    """

    reference: Number
    engine: Number
    deviation: Number
    bound: Number
    cosine_reference: Number
    cosine_engine: Number
    cosine_deviation: Number
    cosine_bound: Number
    unaligned: Number

    @property
    def shown(self) -> tuple[float, ...]:
        """The numbers of a table's row."""
        return (self.reference, self.engine, self.unaligned, self.cosine_reference, self.cosine_engine)

    def departures(self) -> Iterator[tuple[str, str]]:
        """Yield "error" or "cosine", with a description, for each that is NaN or deviates by more than its bound."""
        for what, found, true, deviation, bound in (
            ("error", self.engine, self.reference, self.deviation, self.bound),
            ("cosine", self.cosine_engine, self.cosine_reference, self.cosine_deviation, self.cosine_bound),
        ):
            if not deviation <= bound:
                yield (
                    what,
                    f"{found:.6g}, the reference's {true:.6g}: they differ by {deviation:.2%}, more than {bound:.2%}",
                )


class MapFacts(Frozen):
    """The equivariance of all maps that an engine shows.

    images: the number of images on which it was measured.
    tap: the block whose map is an output of the model, or None.
    actions: the names of all g.
    layers: the facts by the number of the block as text, then by the name of g.
    """

    images: int
    tap: int | None
    actions: tuple[str, ...]
    layers: dict[str, dict[str, ActionFacts]]


class Equivariance(Section):
    """The equivariance of the maps of an engine.

    equivariance: the facts; None when they were not measured.
    judged: the blocks that the engine itself shows; they are not part of the JSON.
    """

    name: ClassVar[str] = "equivariance"
    heading: ClassVar[str | None] = "Equivariance"

    equivariance: MapFacts | None
    judged: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def measured(self) -> bool:
        """Whether equivariance was measured."""
        return self.equivariance is not None

    def failures(self) -> list[str]:
        """Return a sentence for each block and action whose error or cosine is not that of the reference."""
        layers = {} if self.equivariance is None else self.equivariance.layers
        return [
            f"the equivariance {what} of block {place}, {name}, is {words}"
            for place in self.judged
            for name, facts in layers[place].items()
            for what, words in facts.departures()
        ]

    def tables(self, header: Header) -> list[Table]:  # noqa: ARG002 it needs nothing of the header
        """Return a table of every action for the map that is an output, and a table of the means of every block."""
        return [] if self.equivariance is None else list(_tables(self.equivariance))

    def figures(self) -> list[Figure]:
        """Return the mean error of every block's map."""
        return [] if self.equivariance is None else [_figure(self.equivariance)]


def _tables(facts: MapFacts) -> Iterator[Table]:
    tap = str(facts.tap)
    if tap in facts.layers:
        title = f"Equivariance of the map after block {tap}, {facts.images} images"
        yield Table(title, _COLUMNS, tuple(_row(name, entry.shown) for name, entry in facts.layers[tap].items()))
    means = {place: _means(list(by_action.values())) for place, by_action in facts.layers.items()}
    title = "Equivariance of every block's map, mean over all turns, flips and scales"
    yield Table(title, ("block", *_COLUMNS[1:]), tuple(_row(place, values) for place, values in means.items()))


def _means(entries: Sequence[ActionFacts]) -> list[float]:
    """Return the mean of every column of a table."""
    return [finite_mean([entry.shown[i] for entry in entries]) for i in range(len(_COLUMNS) - 1)]


def _row(name: str, values: Sequence[float]) -> tuple[str, ...]:
    return (name, *(number(value, ".4f") for value in values))


def _figure(facts: MapFacts) -> Curves:
    blocks = tuple(int(place) for place in facts.layers)

    def mean(key: str) -> tuple[float, ...]:
        layers = facts.layers.values()
        return tuple(
            math.fsum(getattr(entry, key) for entry in by_action.values()) / len(by_action) for by_action in layers
        )

    return Curves(
        "equivariance",
        "Equivariance error of the feature map of every block; the numbers are in the table.",
        curves=(
            Curve("reference", "float64 reference", blocks, mean("reference")),
            Curve("baseline", "a map that does not follow", blocks, mean("unaligned")),
            Curve("engine", "", blocks, mean("engine")),
        ),
        x_label="block or stage",
        y_label="relative error, lower is better",
        from_zero=True,
        ticks=blocks,
    )


def judge(reference: EquivarianceReference, engine: TermsOfMaps) -> dict[str, dict[str, ActionFacts]]:
    """Compare the terms of every block that an engine shows, by its number as text, and of every g."""
    return {
        str(place): {
            name: _judge(reference.fp64[place][name], reference.in_precision[place][name], terms, reference.tolerance)
            for name, terms in by_action.items()
        }
        for place, by_action in sorted(engine.items())
        if place in reference.fp64
    }


def _judge(fp64: Terms, in_precision: Terms, engine: Terms, tolerance: float) -> ActionFacts:
    def compared(kind: str, prefix: str) -> dict[str, float]:
        true, narrow, found = (np.asarray(getattr(terms, kind)) for terms in (fp64, in_precision, engine))
        size = abs(float(true.mean()))
        noise = gate.MAX_RATIO * share(float(np.abs(narrow - true).mean()), size)
        return {
            f"{prefix}reference": float(true.mean()),
            f"{prefix}engine": float(found.mean()),
            f"{prefix}deviation": share(abs(float(found.mean() - true.mean())), size),
            f"{prefix}bound": float(np.maximum(tolerance, noise)),
        }

    unaligned = float(fp64.unaligned.mean())
    return ActionFacts(**compared("error", ""), **compared("cosine", "cosine_"), unaligned=unaligned)


def _maps(run: Run, as_map: Callable[[int, Tensor], Tensor], places: Sequence[int]) -> Maps:
    """Return the maps of these blocks that a model shows, each from an output or else from an inner tensor."""

    def maps(images: NDArray[np.float32]) -> Mapping[int, Tensor]:
        outputs = run.show(images, REFERENCE_BATCH)
        shown = {place: outputs.get(map_name(place)) for place in places}
        inner = {place: outputs.get(feature_name(place)) for place in places}
        return {
            **{place: as_map(place, torch.from_numpy(value)) for place, value in inner.items() if value is not None},
            **{place: torch.from_numpy(value) for place, value in shown.items() if value is not None},
        }

    return maps


class EquivarianceMeasure(Measure["EquivarianceReference | None", Equivariance]):
    """The measure of how feature maps follow turns, flips and changes of scale, if the options ask for it."""

    section = Equivariance

    def reference(self, runs: ReferenceRuns) -> EquivarianceReference | None:
        """Return the terms of the references, or None when equivariance is not measured."""
        forms = runs.options.forms
        if not runs.options.layers and forms.tap is None:
            return None
        images = runs.inputs.images.array[:IMAGES]
        moved = move(images)
        narrow, fp64 = (
            measure(_maps(run, runs.as_map, runs.stages), images, moved) for run in (runs.in_precision, runs.fp64)
        )
        return EquivarianceReference(
            images=images,
            moved=moved,
            fp64=fp64,
            in_precision=narrow,
            tap=forms.tap,
            as_map=runs.as_map,
            tolerance=tolerance_of((forms.precision, forms.solver_precision)),
        )

    def judge(self, reference: EquivarianceReference | None, run: EngineRun) -> Equivariance:
        """Compare the maps of the engine; maps that only the traced engine shows are reported and not judged."""
        if reference is None:
            return Equivariance(equivariance=None, judged=())
        own = _judged(reference, run)
        layers = own if run.traced is None else _judged(reference, run.traced) | own
        facts = MapFacts(images=len(reference.images), tap=reference.tap, actions=tuple(reference.moved), layers=layers)
        return Equivariance(equivariance=facts, judged=tuple(own))


def _judged(reference: EquivarianceReference, run: Run) -> dict[str, dict[str, ActionFacts]]:
    maps = _maps(run, reference.as_map, sorted(reference.fp64))
    return judge(reference, measure(maps, reference.images, reference.moved))
