"""The measure of the solver's convergence: the residual of every iterate of the reference and of an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dec_export.names import layer_count, solver_tensor
from dec_export.parity.batches import Outputs
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Curve, Curves, Figure
from dec_export.parity.runs import EngineRun, ReferenceRuns


class LayerResiduals(Frozen):
    """The residuals of one layer's solver, or None for a model that does not show its iterates."""

    reference: tuple[Number, ...] | None
    engine: tuple[Number, ...] | None


class Residuals(Section):
    """The residuals of every layer's solver, by the name of its solution without the axis, as "phi_0"."""

    name: ClassVar[str] = "solver"
    heading: ClassVar[str | None] = "Solver"

    solver: dict[str, LayerResiduals]

    @property
    def hidden(self) -> bool:
        """Whether the engine does not show the iterates of some layer."""
        return any(layer.engine is None for layer in self.solver.values())

    def figures(self) -> list[Figure]:
        """Return a figure for each layer whose residuals the reference or the engine shows."""
        return [_figure(name.removeprefix("phi_"), layer) for name, layer in self.solver.items() if _is_shown(layer)]


def _is_shown(layer: LayerResiduals) -> bool:
    return any(map(math.isfinite, (*(layer.reference or ()), *(layer.engine or ()))))


def _figure(layer: str, found: LayerResiduals) -> Curves:
    reference = found.reference or ()
    told = ", ".join(map(number, reference))
    curves = [Curve("reference", "float64 reference", *_numbered(reference))]
    if found.engine is not None:
        curves.append(Curve("engine", "", *_numbered(found.engine)))
    return Curves(
        f"residuals of {layer}",
        f"Residuals of canonicalizer {layer}, iteration by iteration; float64 reference: {told}.",
        curves=tuple(curves),
        x_label="iteration k",
        y_label="|| f(z) - z ||, median",
        title=f"canonicalizer {layer}",
        log=True,
        ticks=tuple(range(len(reference))),
    )


def _numbered(values: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(range(len(values))), values


# The residuals of every layer in order, or None for a layer whose iterates are not shown.
LayersResiduals = list["tuple[float, ...] | None"]


def residuals(outputs: Outputs, layers: int) -> LayersResiduals:
    """Return, for each layer, the median over the images of || f(z_k) - z_k ||_2 for k = 0, 1, ...

    z_0 is constant and z_1 = f(z_0). The result is None for a layer whose iterates the model does not show, as in a
    compiled engine or with a solver in a loop.
    """
    return [_of_layer(outputs, layer) for layer in range(layers)]


def _of_layer(outputs: Mapping[str, NDArray[Any]], layer: int) -> tuple[float, ...] | None:  # as `Outputs`
    found: list[float] = []
    iterate: NDArray[Any] | None = np.ones(())
    while (image := outputs.get(solver_tensor(layer, "image", len(found)))) is not None:
        if iterate is None:
            return None
        difference = image.astype(np.float64) - iterate
        found.append(float(np.median(np.linalg.norm(difference.reshape(len(image), -1), axis=1))))
        iterate = image if len(found) == 1 else outputs.get(solver_tensor(layer, "iterate", len(found)))
    return tuple(found) if len(found) > 2 else None


class ResidualsMeasure(Measure[LayersResiduals, Residuals]):
    """The measure of the residuals of the iterates that a model shows."""

    section = Residuals

    def reference(self, runs: ReferenceRuns) -> LayersResiduals:
        """Return the residuals of the float64 reference; there are none without a solver that iterates."""
        dec = runs.recipe.deep_equilibrium
        layers = layer_count(runs.outputs.fp64) if dec is not None and dec.iterates else 0
        return residuals(runs.outputs.fp64, layers)

    def judge(self, reference: LayersResiduals, run: EngineRun) -> Residuals:
        """Return the residuals of the engine, or of the traced engine that shows inner tensors in its place."""
        found = residuals(run.showing.outputs, len(reference))
        pairs = enumerate(zip(reference, found, strict=True))
        return Residuals(
            solver={f"phi_{layer}": LayerResiduals(reference=truth, engine=engine) for layer, (truth, engine) in pairs}
        )
