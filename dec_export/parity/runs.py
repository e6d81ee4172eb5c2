"""The models that a proof runs on its images: the reference in three formats, and an engine.

Results that several measures need are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from dec_export.names import of_solver
from dec_export.parity.batches import (
    TRACED_IMAGES,
    Outputs,
    batch_sizes,
    in_batches,
    in_padded_batches,
    nearest_batch,
)
from dec_export.parity.inputs import Inputs, LabelledImages, RescaledImages
from dec_export.parity.metrics import OutputParity, compare
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.maps import tapped_map
from dec_export.reference.backbones.stages import stage_count
from dec_export.reference.model import DecModel, in_precision
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
    """

    fp64: Outputs
    fp32: Outputs
    in_precision: Outputs
    unit_roundoff: dict[str, float]

    def compare(self, outputs: Outputs) -> dict[str, OutputParity]:
        """Return the distance from float64 of each tensor that an engine shows."""
        return {
            name: compare(outputs[name], self.fp32[name], truth, self.in_precision[name], self.unit_roundoff[name])
            for name, truth in self.fp64.items()
            # A solver that converges may end earlier, with fewer iterates, in another format.
            if all(name in found for found in (outputs, self.fp32, self.in_precision))
        }


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

    traced: the run of an engine that is not judged, but shows inner tensors in place of this one. Raises EngineError
    when the engine returns no logits, or outputs of another shape than the reference's.
    """

    def __init__(
        self, engine: Engine, inputs: Inputs, reference: ReferenceOutputs, traced: EngineRun | None = None
    ) -> None:
        super().__init__(engine, inputs)
        self.reference, self.traced = reference, traced
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
        return self._engine()(image)

    def describe(self) -> EngineDetails:
        return self._engine().describe()

    def _engine(self) -> TorchEngine:
        model = self._model.to(self._dtype)
        return TorchEngine(model, tap=self._options.forms.tap, inner=True, threads=self._options.threads)


class ReferenceRuns:
    """The reference in float64, in float32 and in the engines' precision, on one set of images.

    The runs cast `model` to float32 and to float64; the caller casts it back to float32 after the last run.
    """

    def __init__(self, model: DecModel, inputs: Inputs, options: ReferenceOptions) -> None:
        self._model, self.inputs, self.options = model, inputs, options
        forms = options.forms
        self.fp32 = Run(_Cast(model, torch.float32, options), inputs)
        self.fp64 = Run(_Cast(model, torch.float64, options), inputs)
        self.in_precision = self.fp32
        if (forms.precision, forms.solver_precision) != (Format.FP32, Format.FP32):
            narrow = in_precision(model.float(), forms.precision, forms.solver_precision)
            engine = TorchEngine(narrow, tap=forms.tap, inner=True, threads=options.threads)
            self.in_precision = Run(engine, inputs)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model."""
        return self._model.recipe

    @cached_property
    def outputs(self) -> ReferenceOutputs:
        """The outputs of all three references."""
        forms, fp32, narrow = self.options.forms, self.fp32.outputs, self.in_precision.outputs
        fp64 = self.fp64.outputs
        roundoff = {
            name: (forms.solver_precision if of_solver(name) else forms.precision).unit_roundoff for name in fp64
        }
        return ReferenceOutputs(fp64, fp32, narrow, roundoff)

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
