"""How much one step f of a canonicalizer magnifies a small change of phi, at the solution.

A solve repeats f six times, so rounding grows by about the sixth power of this; it explains the noise floor.
See docs/semantics.md, section 9.
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

# Amplification is a property of the model on photographs, not of each photograph: a few show it.
SAMPLES = 4
# Central differences in float64 lose a third of the digits to truncation and a third to rounding at this step.
_STEP = 1e-5
_DIRECTIONS = 3
_SWEEPS = 2


class Gain(Frozen):
    """Growth of a change of phi in one step: the median over random directions, and the largest that was found."""

    random: Number
    largest: Number

    @property
    def is_finite(self) -> bool:
        """Whether neither is NaN or infinite."""
        return math.isfinite(self.random) and math.isfinite(self.largest)


# By the name of the solution without its axis, as "phi_0".
Gains = dict[str, Gain]


class Amplification(Section):
    """The growth in every canonicalizer of the float64 reference; the engine has no part in it."""

    name: ClassVar[str] = "amplification"
    heading: ClassVar[str | None] = "Amplification"

    amplification: Gains

    @property
    def measured(self) -> bool:
        """Whether the model has canonicalizers."""
        return bool(self.amplification)

    def failures(self) -> list[str]:
        """A reference that is not finite proves nothing."""
        if all(gain.is_finite for gain in self.amplification.values()):
            return []
        return ["the float64 reference itself is not finite on these images"]

    def rows(self) -> list[Row]:
        """The growth in every canonicalizer."""
        gains = ", ".join(
            f"{layer} {number(gain.random, '.1f')} (largest {number(gain.largest, '.1f')})"
            for layer, gain in self.amplification.items()
        )
        return [Row("growth of a change of phi in one step", gains)] if gains else []


def amplification(model: DecModel, image: Float64[Tensor, "images 3 h w"], phis: list[Phi], seed: int = 0) -> Gains:
    """For each layer, || f(z + h d) - f(z - h d) || / (2 h) for unit directions d, in float64.

    model: in float64; phis: the solutions. `random` is the median over samples and seeded random
    directions. `largest` is the largest value met when each direction is then replaced by its own image under the
    derivative, twice, which turns it towards the direction that grows fastest.
    """
    result: Gains = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for layer, (f, phi) in enumerate(zip(model.DEM.step_functions(image), phis, strict=True)):
            gains = torch.stack([_gains(f, phi.flatten(), generator) for _ in range(_DIRECTIONS)])
            result[f"phi_{layer}"] = Gain(random=gains[:, 0].median().item(), largest=gains.max().item())
    return result


def _gains(
    f: Callable[[Tensor], Tensor], z: Float64[Tensor, "images n"], generator: torch.Generator
) -> Float64[Tensor, "directions images"]:
    """Growth of one random direction, then of its images."""
    direction = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    gains = []
    for _ in range(1 + _SWEEPS):
        unit = direction / direction.norm(dim=1, keepdim=True)
        direction = (f(z + _STEP * unit) - f(z - _STEP * unit)) / (2 * _STEP)
        gains.append(direction.norm(dim=1))
    return torch.stack(gains)


def solved_phis(outputs: Outputs, samples: int) -> list[Phi]:
    """The solutions of all layers for the first samples."""
    names = phi_names(layer_count(outputs))
    axes = [torch.from_numpy(outputs[name][:samples]) for name in names]
    return [Phi(x, y) for x, y in zip(axes[::2], axes[1::2], strict=True)]


class AmplificationMeasure(Measure[Gains, Amplification]):
    """Measures the growth of small changes, of the reference alone."""

    section = Amplification

    def reference(self, runs: ReferenceRuns) -> Gains:
        """The growth at the solutions of the float64 reference."""
        phis = solved_phis(runs.outputs.fp64, SAMPLES)
        images = torch.from_numpy(runs.inputs.images.array[:SAMPLES]).double()
        return amplification(runs.float64_model(), images, phis)

    def judge(self, reference: Gains, run: EngineRun) -> Amplification:  # noqa: ARG002 the same for every engine
        """What was measured of the reference."""
        return Amplification(amplification=reference)
