"""The models that a proof runs on its images: the reference in three formats, and an engine.

Results that several measures need are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dec_export.engines.base import Engine, EngineDetails
from dec_export.engines.torch import TorchEngine
from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.forms import Forms
from dec_export.names import LOGITS, of_solver
from dec_export.parity.batches import (
    REFERENCE_BATCH,
    TRACED_IMAGES,
    Outputs,
    batch_sizes,
    in_batches,
    in_padded_batches,
    nearest_batch,
)
from dec_export.parity.choices import Alternative, Choices, chosen, compare_scores, replaced
from dec_export.parity.inputs import Inputs, LabelledImages, RescaledImages
from dec_export.parity.metrics import OutputParity, compare
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.maps import tapped_map
from dec_export.reference.backbones.stages import stage_count
from dec_export.reference.discrete import DiscreteCanonicalizer
from dec_export.reference.model import DecModel, in_precision
from dec_export.reference.warp import Phi
from dec_export.tasks.arrays import Array


@dataclass(frozen=True)
class ReferenceOptions:
    """The settings of the runs of references.

    forms: the form of the engines' ONNX file; the reference in its precision gives the noise floor.
    threads: the number of CPU threads; None leaves the choice to PyTorch.
    labelled: images of known classes. rescaled: images whose objects change their scales.
    layers: whether the equivariance of every block's feature map is measured; it is always measured for a model that
    returns a feature map.
    """

    forms: Forms = field(default_factory=Forms)
    threads: int | None = None
    labelled: Sequence[LabelledImages] = ()
    layers: bool = False
    rescaled: RescaledImages | None = None


@dataclass(frozen=True)
class ReferenceOutputs:
    """The reference's outputs for the images, in float64, in float32 and in the engines' precision.

    They hold the logits, the phis, and every other tensor that `names` knows.
    unit_roundoff: the unit roundoff of the engines' precision for each tensor by its name.
    choices: the choices of a discrete canonicalizer; None for a model that has none. All three references are evaluated
    at the choice of the float64 reference.
    alternatives: the outputs at every other choice that rounding explains.
    """

    fp64: Outputs
    fp32: Outputs
    in_precision: Outputs
    unit_roundoff: dict[str, float]
    choices: Choices | None = None
    alternatives: tuple[Alternative, ...] = ()

    def compare(self, outputs: Outputs) -> dict[str, OutputParity]:
        """Return the distance from float64 of each tensor that an engine shows, at the engine's admissible choices."""
        at = self.at_choices_of(outputs)
        return {
            name: compare(outputs[name], at.fp32[name], truth, at.in_precision[name], self.unit_roundoff[name])
            for name, truth in at.fp64.items()
            # A solver that converges may end earlier, with fewer iterates, in another format.
            if all(name in found for found in (outputs, at.fp32, at.in_precision))
        }

    def chosen_by(self, outputs: Outputs) -> list[int]:
        """Return the candidate at which an engine is judged, for each image; there is none without choices."""
        if self.choices is None:
            return []
        return chosen(self.choices, self.alternatives, self.fp64[LOGITS], outputs)

    def moved_by(self, outputs: Outputs) -> list[Alternative]:
        """Return the outputs at the admissible choices of an engine that are not those of the float64 reference."""
        if not self.alternatives:
            return []
        found = self.chosen_by(outputs)
        return [other for other in self.alternatives if found[other.image] == other.candidate]

    def at_choices_of(self, outputs: Outputs) -> ReferenceOutputs:
        """Return these outputs with the rows of `moved_by` in their places; these outputs themselves without any."""
        moved = self.moved_by(outputs)
        if not moved:
            return self
        return replace(
            self,
            fp64=replaced(self.fp64, [(other.image, other.fp64) for other in moved]),
            fp32=replaced(self.fp32, [(other.image, other.fp32) for other in moved]),
            in_precision=replaced(self.in_precision, [(other.image, other.in_precision) for other in moved]),
        )


class Run:
    """The run of a model on the images of a proof; it raises the errors of its engine."""

    def __init__(self, engine: Engine, inputs: Inputs) -> None:
        self.engine, self.inputs = engine, inputs

    @cached_property
    def outputs(self) -> Outputs:
        """The outputs for all images, and inner tensors for the first of them."""
        return in_batches(self.engine, self.inputs.images.array)

    @cached_property
    def scaled(self) -> Outputs:
        """The outputs for the locally scaled copies."""
        return in_batches(self.engine, self.inputs.scaled, traced=0)

    def predict(self, images: NDArray[np.float32], batch: int) -> Array:
        """Return the logits of other images (N, 3, H, W), which run in batches of about `batch` images."""
        return in_padded_batches(self.engine, images, nearest_batch(self.engine, batch), traced=0)["logits"]

    def show(self, images: NDArray[np.float32], batch: int) -> Outputs:
        """Return all tensors that the model shows of other images (N, 3, H, W), in batches of about `batch` images."""
        return in_padded_batches(self.engine, images, nearest_batch(self.engine, batch), traced=len(images))


class EngineRun(Run):
    """The run of an engine that is compared with references.

    reference, scaled_reference: the references' outputs for the images and for their locally scaled copies.
    traced: the run of an engine that is not judged, but shows inner tensors in place of this one. Raises EngineError
    when the engine returns no logits, or outputs of another shape than the reference's.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Inputs,
        reference: ReferenceOutputs,
        scaled_reference: ReferenceOutputs,
        traced: EngineRun | None = None,
    ) -> None:
        super().__init__(engine, inputs)
        self.reference, self.scaled_reference, self.traced = reference, scaled_reference, traced
        self.batch_sizes = batch_sizes(engine, len(inputs.images))

    @cached_property
    def outputs(self) -> Outputs:
        """The outputs at the smallest batch size."""
        return self._run(self.inputs.images.array, self.batch_sizes[0])

    @cached_property
    def scaled(self) -> Outputs:
        """The outputs for the locally scaled copies, at the smallest batch size."""
        return self._run(self.inputs.scaled, self.batch_sizes[0], traced=0)

    @cached_property
    def truth(self) -> ReferenceOutputs:
        """The references' outputs for the images, at this engine's admissible choices."""
        return self.reference.at_choices_of(self.outputs)

    @cached_property
    def scaled_truth(self) -> ReferenceOutputs:
        """The references' outputs for the locally scaled copies, at this engine's admissible choices."""
        return self.scaled_reference.at_choices_of(self.scaled)

    @cached_property
    def tensors(self) -> dict[str, OutputParity]:
        """Every tensor that is shown at all batch sizes, at the batch size at which it is furthest from float64."""
        others = (self._run(self.inputs.images.array, batch) for batch in self.batch_sizes[1:])
        return _worst([self.reference.compare(outputs) for outputs in (self.outputs, *others)])

    @property
    def showing(self) -> EngineRun:
        """The run that shows inner tensors: `traced`, or this one without it."""
        return self.traced or self

    def _run(self, images: NDArray[np.float32], batch: int, traced: int = TRACED_IMAGES) -> Outputs:
        outputs = in_padded_batches(self.engine, images, batch, traced)
        if "logits" not in outputs:
            raise EngineError(
                f"The engine '{self.engine.name}' returned {', '.join(outputs) or 'nothing'}, but no logits."
            )
        for name, value in outputs.items():
            expected = self.reference.fp64[name].shape[1:] if name in self.reference.fp64 else value.shape[1:]
            if value.shape[1:] != expected:
                raise EngineError(f"The engine's output '{name}' has shape {value.shape}, expected (N, *{expected}).")
        return outputs


def _worst(by_batch: Sequence[dict[str, OutputParity]]) -> dict[str, OutputParity]:
    """Return every tensor that all batches have, at its worst batch size; NaN is worse than any number."""

    def badness(parity: OutputParity) -> float:
        return float(np.nan_to_num(np.max([parity.ratio, parity.typical_ratio]), nan=np.inf))

    shared = [name for name in by_batch[0] if all(name in parities for parities in by_batch)]
    return {name: max((parities[name] for parities in by_batch), key=badness) for name in shared}


class _Cast:
    """The reference in one dtype as an engine.

    The references in float32 and float64 share one model, which is cast before each call, because a second copy of a
    large model takes gigabytes. Casting to float64 and back changes no bit.
    """

    name = "torch"
    exposes_phi = True
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(self, model: DecModel, dtype: torch.dtype, options: ReferenceOptions) -> None:
        self._model, self._dtype, self._options = model, dtype, options

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        return self.torch_engine()(image)

    def describe(self) -> EngineDetails:
        return self.torch_engine().describe()

    def torch_engine(self) -> TorchEngine:
        """Return the engine of the model in this dtype."""
        return _torch_engine(self._model.to(self._dtype), self._options)


class _Narrow(_Cast):
    """A copy of the reference in the engines' precision as an engine."""

    def torch_engine(self) -> TorchEngine:
        return _torch_engine(self._model, self._options)


class _AtChoice:
    """A reference that warps by the choices of the float64 reference `chooser`.

    Two references that choose differently would differ by as much as the warps do, which is no rounding.
    """

    name = "torch"
    exposes_phi = True
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(self, reference: _Cast, chooser: DecModel) -> None:
        self._reference, self._chooser = reference, chooser

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        model = self._chooser.double()
        with torch.inference_mode():
            phis: list[Phi] = model.DEM(torch.from_numpy(image).double())
        return self._reference.torch_engine().at(image, phis)

    def describe(self) -> EngineDetails:
        return self._reference.describe()


def _torch_engine(model: DecModel, options: ReferenceOptions) -> TorchEngine:
    return TorchEngine(model, tap=options.forms.tap, inner=True, threads=options.threads)


class ReferenceRuns:
    """The reference in float64, in float32 and in the engines' precision, on one set of images.

    The runs cast `model` to float32 and to float64; the caller casts it back to float32 after the last run.
    """

    def __init__(self, model: DecModel, inputs: Inputs, options: ReferenceOptions) -> None:
        self._model, self.inputs, self.options = model, inputs, options
        forms = options.forms
        self._references = [_Cast(model, torch.float64, options), _Cast(model, torch.float32, options)]
        if (forms.precision, forms.solver_precision) != (Format.FP32, Format.FP32):
            narrow = in_precision(model.float(), forms.precision, forms.solver_precision)
            self._references.append(_Narrow(narrow, torch.float32, options))
        fp64, *others = self._references
        runs = [Run(self._at_choice(reference), inputs) for reference in others]
        self.fp64, self.fp32, self.in_precision = Run(fp64, inputs), runs[0], runs[-1]

    def _at_choice(self, reference: _Cast) -> Engine:
        return reference if self.recipe.discrete is None else _AtChoice(reference, self._model)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model."""
        return self._model.recipe

    @cached_property
    def outputs(self) -> ReferenceOutputs:
        """The outputs of all three references for the images."""
        fp32, narrow = self.fp32.outputs, self.in_precision.outputs
        return self._outputs(self.inputs.images.array, self.fp64.outputs, fp32, narrow)

    @cached_property
    def scaled(self) -> ReferenceOutputs:
        """The outputs of all three references for the locally scaled copies."""
        fp32, narrow = self.fp32.scaled, self.in_precision.scaled
        return self._outputs(self.inputs.scaled, self.fp64.scaled, fp32, narrow)

    def _outputs(self, images: NDArray[np.float32], fp64: Outputs, fp32: Outputs, narrow: Outputs) -> ReferenceOutputs:
        forms = self.options.forms
        roundoff = {
            name: (forms.solver_precision if of_solver(name) else forms.precision).unit_roundoff for name in fp64
        }
        choices = self._choices(images)
        alternatives = () if choices is None else tuple(self._alternatives(images, choices))
        return ReferenceOutputs(fp64, fp32, narrow, roundoff, choices, alternatives)

    def _choices(self, images: NDArray[np.float32]) -> Choices | None:
        """Return the choices for images (N, 3, H, W), or None without a discrete canonicalizer."""
        canonicalizer = self._model.DEM
        if not isinstance(canonicalizer, DiscreteCanonicalizer):
            return None
        single, double = (_scores(canonicalizer.to(dtype), images) for dtype in (torch.float32, torch.float64))
        candidates = torch.stack(list(canonicalizer.candidates), dim=1)
        return compare_scores(double.astype(np.float64), single, candidates.numpy())

    def _alternatives(self, images: NDArray[np.float32], choices: Choices) -> Iterator[Alternative]:
        """Yield the outputs of the references at every admissible choice that is not the best."""
        for image, candidate in choices.alternatives():
            steps = torch.from_numpy(choices.candidates[candidate])[:, None]
            phis = [Phi(steps[0], steps[1])]
            one = images[image : image + 1]
            found = [reference.torch_engine().at(one, phis) for reference in self._references]
            rows = [{name: value[0] for name, value in outputs.items()} for outputs in found]
            yield Alternative(image, candidate, rows[0], rows[1], rows[-1])

    def float64_model(self) -> DecModel:
        """Return the model in float64, which it is until one of the runs casts it."""
        return self._model.double()

    @property
    def stages(self) -> range:
        """The numbers of the backbone's blocks or stages."""
        return range(stage_count(self.recipe, self._model.backbone))

    def as_map(self, place: int, features: Tensor) -> Tensor:
        """Return the features of a block or stage as the map (N, C, h, w) float64 that its tap shows."""
        with torch.no_grad():
            return tapped_map(self.recipe.backbone, self._model.backbone, place, features, torch.float64)


def _scores(canonicalizer: DiscreteCanonicalizer, images: NDArray[np.float32]) -> Array:
    """Return the scores of all candidates (N, K) in the dtype of the canonicalizer."""
    dtype = canonicalizer.deform_params_x.dtype
    with torch.inference_mode():
        parts = torch.split(torch.from_numpy(images).to(dtype), REFERENCE_BATCH)
        return torch.cat([canonicalizer.scores(part) for part in parts]).numpy()
