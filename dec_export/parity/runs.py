"""The models that a proof runs on its images: the reference in three formats, and an engine.

What several measures ask of a run is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

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
from dec_export.parity.inputs import Inputs, LabelledImages
from dec_export.parity.metrics import OutputParity, compare
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.maps import to_map
from dec_export.reference.backbones.stages import stage_count
from dec_export.reference.model import DecModel, in_precision


@dataclass(frozen=True)
class ReferenceOptions:
    """How references are run.

    forms: what the engines' ONNX file is; the reference in its precision is the noise floor. threads: of the CPU; None
    leaves the choice to PyTorch. labelled: images of known classes. layers: whether the equivariance of every block's
    feature map is measured; for a model that returns a feature map it is measured anyway.
    """

    forms: Forms = field(default_factory=Forms)
    threads: int | None = None
    labelled: Sequence[LabelledImages] = ()
    layers: bool = False


@dataclass(frozen=True)
class ReferenceOutputs:
    """The reference's outputs for the images, in float64, in float32 and in the engines' precision.

    They hold the logits, the phis, and every other tensor that `names` knows. unit_roundoff: by the tensor's name, that
    of the engines' precision.
    """

    fp64: Outputs
    fp32: Outputs
    in_precision: Outputs
    unit_roundoff: dict[str, float]

    def compare(self, outputs: Outputs) -> dict[str, OutputParity]:
        """How far each tensor that an engine shows is from float64."""
        return {
            name: compare(outputs[name], self.fp32[name], truth, self.in_precision[name], self.unit_roundoff[name])
            for name, truth in self.fp64.items()
            # A solver that converges may end earlier in another format, with fewer iterates.
            if all(name in found for found in (outputs, self.fp32, self.in_precision))
        }


class Run:
    """A model on the images of a proof. Raises what its engine raises."""

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

    def predict(self, images: NDArray[np.float32], batch: int) -> NDArray[Any]:
        """The logits of other images (N, 3, H, W), run about `batch` at a time."""
        return in_padded_batches(self.engine, images, nearest_batch(self.engine, batch), traced=0)["logits"]

    def show(self, images: NDArray[np.float32], batch: int) -> Outputs:
        """Everything that the model shows of other images (N, 3, H, W), run about `batch` at a time."""
        return in_padded_batches(self.engine, images, nearest_batch(self.engine, batch), traced=len(images))


class EngineRun(Run):
    """An engine that is compared with references.

    traced: a run of an engine that is not judged, but shows inner tensors in place of this one. Raises EngineError
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
        """Every tensor that all batch sizes show, at the batch size at which it is the farthest from float64."""
        others = (self._run(self.inputs.images.array, batch) for batch in self.batch_sizes[1:])
        return _worst([self.reference.compare(outputs) for outputs in (self.outputs, *others)])

    @property
    def showing(self) -> EngineRun:
        """The run that shows inner tensors: this one, or the one in its place."""
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
    """Every tensor that all batches have, at the batch size at which it is worst; NaN is worse than any number."""

    def badness(parity: OutputParity) -> float:
        return float(np.nan_to_num(np.max([parity.ratio, parity.typical_ratio]), nan=np.inf))

    shared = [name for name in by_batch[0] if all(name in parities for parities in by_batch)]
    return {name: max((parities[name] for parities in by_batch), key=badness) for name in shared}


class _Cast:
    """The reference in one dtype, as an engine.

    References in float32 and float64 share one model, which is cast before each call: a second copy of a large one
    takes gigabytes. Casting to float64 and back changes no bit.
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

    The runs cast `model` to and fro: whoever makes them casts it back to float32 when they are done.
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
        """The outputs of all three."""
        forms, fp32, narrow = self.options.forms, self.fp32.outputs, self.in_precision.outputs
        fp64 = self.fp64.outputs
        roundoff = {
            name: (forms.solver_precision if of_solver(name) else forms.precision).unit_roundoff for name in fp64
        }
        return ReferenceOutputs(fp64, fp32, narrow, roundoff)

    def float64_model(self) -> DecModel:
        """The model, in float64 until one of the runs casts it back."""
        return self._model.double()

    @property
    def stages(self) -> range:
        """The numbers of the backbone's blocks or stages."""
        return range(stage_count(self.recipe, self._model.backbone))

    @property
    def as_map(self) -> Callable[[Tensor], Tensor]:
        """What makes a map (N, C, h, w) of the features of a block."""
        return partial(to_map, self.recipe.backbone, self._model.backbone)
