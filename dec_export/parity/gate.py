"""The gate: a stated function of the noise floor, not of a tolerance that somebody picked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from dec_export.parity.metrics import OutputParity

Verdict = Literal["pass", "fail"]

# Two correct implementations in one precision lie on a sphere of about the same radius around float64; a correct
# engine may be the unluckier of the two, but not by more than this factor.
MAX_RATIO = 2.0

RULE = (
    f"every output and every phi, at every batch size run: rel_l2 <= {MAX_RATIO:g} x max(rel_l2_reference, unit "
    "roundoff) over all samples (ratio) and for the typical sample (typical_ratio), all against the float64 "
    "reference; rel_l2_reference is that of the PyTorch reference in the engine's precision; NaN or infinity anywhere "
    "fails"
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
