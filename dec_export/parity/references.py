"""The results of the reference on the images of a proof, which are computed once and compared with every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from dec_export.data.images import ImageSet
from dec_export.forms import Forms
from dec_export.names import LOGITS, layer_count
from dec_export.parity.inputs import Inputs
from dec_export.parity.measures.base import Measure, Section
from dec_export.parity.measures.invariance import local_scale, local_scale_phi
from dec_export.parity.measures.registry import MEASURES
from dec_export.parity.runs import ReferenceOptions, ReferenceOutputs, ReferenceRuns
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.stages import warped_places
from dec_export.reference.model import DecModel
from dec_export.tasks.arrays import Array

_SEED = 0

R = TypeVar("R")


@dataclass(frozen=True)
class References:
    """The results of the reference with which engines are compared.

    recipe, forms: the recipe of the model, and the form of the engines' ONNX file.
    inputs: the images on which all models run.
    outputs, scaled: the outputs for the images and for their locally scaled copies, in three formats.
    places: the number of the canonicalizer whose solution each place of the model uses; place -1 is the image, and
    place i is the input of block or stage i.
    by_measure: the results that each measure keeps, by the name of its section.
    """

    recipe: Recipe
    forms: Forms
    inputs: Inputs
    outputs: ReferenceOutputs
    scaled: ReferenceOutputs
    places: dict[int, int]
    by_measure: Mapping[str, object]

    @property
    def scaled_logits(self) -> Array:
        """The logits of the float64 reference for the locally scaled copies."""
        return self.scaled.fp64[LOGITS]

    def of(self, measure: type[Measure[R, Section]]) -> R:
        """Return the results of the reference that a measure keeps."""
        return cast(R, self.by_measure[measure.section.name])


def run_references(model: DecModel, images: ImageSet, options: ReferenceOptions | None = None) -> References:
    """Run the reference in float64, in float32 and in the engines' precision, for every measure.

    `model` is in float32 again when the function returns.
    """
    options = options or ReferenceOptions()
    runs = ReferenceRuns(model, _inputs(model.recipe, images, options), options)
    try:
        return References(
            recipe=model.recipe,
            forms=options.forms,
            inputs=runs.inputs,
            outputs=runs.outputs,
            scaled=runs.scaled,
            places=_places(model, layer_count(runs.outputs.fp64)),
            by_measure={measure.section.name: measure.reference(runs) for measure in MEASURES},
        )
    finally:
        model.float()


def _inputs(recipe: Recipe, images: ImageSet, options: ReferenceOptions) -> Inputs:
    strength = recipe.evaluation.strength
    return Inputs(
        images=images,
        scaled=local_scale(images.array, _SEED, strength),
        phi=local_scale_phi(len(images), _SEED, strength),
        seed=_SEED,
        strength=strength,
        labelled=tuple(options.labelled),
        rescaled=options.rescaled,
    )


def _places(model: DecModel, layers: int) -> dict[int, int]:
    return warped_places(model.recipe, model.backbone, layers)
