"""The gate: a stated function of the noise floor, not of a tolerance that somebody picked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from dec_export.parity.measures.invariance import InvarianceParity
from dec_export.parity.metrics import OutputParity

Verdict = Literal["pass", "fail"]

# Two correct implementations in one precision lie on a sphere of about the same radius around float64; a correct
# engine may be the unluckier of the two, but not by more than this factor.
MAX_RATIO = 2.0

# The engine's InvE, EqE and equivariance errors may differ from the reference's by this share, or by what rounding
# explains.
MAX_DEVIATION = {"fp32": 0.01, "fp16": 0.05, "bf16": 0.05}

RULE = (
    f"every output and every phi, at every batch size run: rel_l2 <= {MAX_RATIO:g} x max(rel_l2_reference, unit "
    "roundoff) over all samples (ratio) and for the typical sample (typical_ratio), all against the float64 "
    "reference; rel_l2_reference is that of the PyTorch reference in the engine's precision; NaN or infinity anywhere "
    "fails; InvE or EqE, and the equivariance error and cosine of every feature map that is shown, within "
    f"{100 * MAX_DEVIATION['fp32']:g} % of the reference's ({100 * MAX_DEVIATION['fp16']:g} % in 16 bits), or within "
    f"{MAX_RATIO:g} x what the reference's own changes in the engine's precision"
)


def failures(tensors: Mapping[str, OutputParity], expected: Iterable[str] = ()) -> list[str]:
    """One sentence for each tensor that breaks the rule, or is expected but not there; none when the gate is passed."""
    broken = [f"{name} was not returned by the engine" for name in expected if name not in tensors]
    for name, parity in tensors.items():
        if parity.nonfinite:
            broken.append(f"{name} holds {parity.nonfinite} values that are NaN or infinite")
        elif not math.isfinite(parity.rel_l2) or not math.isfinite(parity.rel_l2_reference):
            broken.append(f"{name} cannot be judged: the reference itself is not finite")
        elif parity.ratio > MAX_RATIO:
            broken.append(
                f"{name} is {parity.ratio:.3g} times as far from float64 as the reference in its precision "
                f"(rel_l2 {parity.rel_l2:.3g} against {parity.rel_l2_reference:.3g})"
            )
        elif parity.typical_ratio > MAX_RATIO:
            broken.append(
                f"{name} is typically {parity.typical_ratio:.3g} times as far from float64 as the reference in its "
                f"precision (worst: sample {parity.worst_sample}, {parity.worst_sample_ratio:.3g} times)"
            )
    return broken


def invariance_failures(parity: InvarianceParity) -> list[str]:
    """A sentence when the engine's InvE or EqE is not the reference's; none when it is."""
    if not math.isfinite(parity.deviation):
        return [f"{parity.metric} cannot be judged: it is not finite"]
    if parity.deviation <= parity.bound:
        return []
    return [
        f"{parity.metric} is {parity.engine:.6g}, the reference's {parity.reference:.6g}: they differ by "
        f"{parity.deviation:.2%}, more than {parity.bound:.2%}"
    ]


def equivariance_failures(layers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A sentence for each block and change of the image whose error or cosine is not the reference's."""
    return [
        f"the equivariance {what} of block {place}, {name}, is {facts[f'{prefix}engine']:.6g}, the reference's "
        f"{facts[f'{prefix}reference']:.6g}: they differ by {facts[f'{prefix}deviation']:.2%}, more than "
        f"{facts[f'{prefix}bound']:.2%}"
        for place, by_action in layers.items()
        for name, facts in by_action.items()
        for what, prefix in (("error", ""), ("cosine", "cosine_"))
        if not facts[f"{prefix}deviation"] <= facts[f"{prefix}bound"]  # NaN fails
    ]


def max_deviation(precision: Mapping[str, str]) -> float:
    """The share by which InvE, EqE and equivariance errors of an engine with parts in these formats may differ."""
    return max(MAX_DEVIATION[name] for name in precision.values())


def leaves_the_noise(parity: OutputParity) -> bool:
    """Whether a tensor breaks the gate's rule."""
    return bool(failures({"": parity}))
