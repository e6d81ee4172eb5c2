"""The measure of how much one step f of a canonicalizer magnifies a small change of phi at the solution.

A solve applies f six times, so rounding grows by about the sixth power of this amplification, which explains the noise
floor. See docs/semantics.md, section 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from dec_export.names import layer_count, phi_names
from dec_export.parity.batches import Outputs
from dec_export.parity.measures.base import Frozen, Measure, Section
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Row
from dec_export.parity.runs import EngineRun, ReferenceRuns
from dec_export.reference.model import DecModel
from dec_export.reference.warp import Phi

# Amplification is a property of the model that differs little between photographs, so a few images show it.
SAMPLES = 4
# With this step, central differences in float64 lose a third of the digits to truncation and a third to rounding.
_STEP = 1e-5
_DIRECTIONS = 3
_SWEEPS = 2


class Gain(Frozen):
    """The growth of a change of phi in one step of a canonicalizer.

    random: the median growth over random directions.
    largest: the largest growth that was found.
    """

    random: Number
    largest: Number

    @property
    def is_finite(self) -> bool:
        """Whether both numbers are finite."""
        return math.isfinite(self.random) and math.isfinite(self.largest)


# The gain of each canonicalizer by the name of its solution without the axis, as "phi_0".
Gains = dict[str, Gain]


class Amplification(Section):
    """The growth in every canonicalizer of the float64 reference, which does not depend on the engine."""

    name: ClassVar[str] = "amplification"
    heading: ClassVar[str | None] = "Amplification"

    amplification: Gains

    @property
    def measured(self) -> bool:
        """Whether the model has canonicalizers."""
        return bool(self.amplification)

    def failures(self) -> list[str]:
        """Return a sentence if the reference is not finite, because it then proves nothing."""
        if all(gain.is_finite for gain in self.amplification.values()):
            return []
        return ["the float64 reference itself is not finite on these images"]

    def rows(self) -> list[Row]:
        """Return the growth in every canonicalizer."""
        gains = ", ".join(
            f"{layer} {number(gain.random, '.1f')} (largest {number(gain.largest, '.1f')})"
            for layer, gain in self.amplification.items()
        )
        return [Row("growth of a change of phi in one step", gains)] if gains else []


def amplification(model: DecModel, image: Float64[Tensor, "images 3 h w"], phis: list[Phi], seed: int = 0) -> Gains:
    """Return the gain || f(z + h d) - f(z - h d) || / (2 h) of each layer for unit directions d, in float64.

    model: a model in float64. phis: its solutions for the images.
    `random` is the median over samples and seeded random directions. `largest` is the largest value when each direction
    is also replaced, twice, by its image under the derivative, which turns it towards the direction of largest growth.
    """
    result: Gains = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        # Without a solver there are phis, and no step functions.
        for layer, (f, phi) in enumerate(zip(model.DEM.step_functions(image), phis, strict=False)):
            gains = torch.stack([_gains(f, phi.flatten(), generator) for _ in range(_DIRECTIONS)])
            result[f"phi_{layer}"] = Gain(random=gains[:, 0].median().item(), largest=gains.max().item())
    return result


def _gains(
    f: Callable[[Tensor], Tensor], z: Float64[Tensor, "images n"], generator: torch.Generator
) -> Float64[Tensor, "directions images"]:
    """Return the growth of one random direction, and then that of its images under the derivative."""
    direction = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    gains = []
    for _ in range(1 + _SWEEPS):
        unit = direction / direction.norm(dim=1, keepdim=True)
        direction = (f(z + _STEP * unit) - f(z - _STEP * unit)) / (2 * _STEP)
        gains.append(direction.norm(dim=1))
    return torch.stack(gains)


def solved_phis(outputs: Outputs, samples: int) -> list[Phi]:
    """Return the solutions of all layers for the first `samples` images."""
    names = phi_names(layer_count(outputs))
    axes = [torch.from_numpy(outputs[name][:samples]) for name in names]
    return [Phi(x, y) for x, y in zip(axes[::2], axes[1::2], strict=True)]


class AmplificationMeasure(Measure[Gains, Amplification]):
    """The measure of the growth of small changes in the reference."""

    section = Amplification

    def reference(self, runs: ReferenceRuns) -> Gains:
        """Return the growth at the solutions of the float64 reference."""
        phis = solved_phis(runs.outputs.fp64, SAMPLES)
        images = torch.from_numpy(runs.inputs.images.array[:SAMPLES]).double()
        return amplification(runs.float64_model(), images, phis)

    def judge(self, reference: Gains, run: EngineRun) -> Amplification:  # noqa: ARG002 it is equal for every engine
        """Return the growth that was measured in the reference."""
        return Amplification(amplification=reference)
