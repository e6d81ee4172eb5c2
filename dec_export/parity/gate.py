"""The gate, which judges an engine by the noise floor instead of a tolerance that somebody chose."""

from __future__ import annotations

import math

from dec_export.formats import Format
from dec_export.parity.metrics import OutputParity

# Two correct implementations in one precision have about the same distance from float64. A correct engine may be
# further away than the reference in its precision, but not by more than this factor.
MAX_RATIO = 2.0

RULE = (
    f"every output and every phi, at every batch size run: rel_l2 <= {MAX_RATIO:g} x max(rel_l2_reference, unit "
    "roundoff) over all samples (ratio) and for the typical sample (typical_ratio), all against the float64 "
    "reference; rel_l2_reference is that of the PyTorch reference in the engine's precision; NaN or infinity anywhere "
    "fails; InvE or EqE, lscal_eq_error and eq_loss where they are measured, and the equivariance error and cosine of "
    "every feature map that is shown, within "
    f"{100 * Format.FP32.tolerance:g} % of the reference's ({100 * Format.FP16.tolerance:g} % in 16 bits), or within "
    f"{MAX_RATIO:g} x what the reference's own changes in the engine's precision"
)

CHOICE_RULE = (
    "an image whose best candidate is not the only one within "
    f"{MAX_RATIO:g} x the noise of the scores is judged at the engine's own choice among these; any other choice than "
    "the float64 reference's fails"
)


def departure(name: str, parity: OutputParity) -> str | None:
    """Return the sentence that says how the tensor `name` breaks the rule, or None if it does not break it."""
    if parity.nonfinite:
        return f"{name} holds {parity.nonfinite} values that are NaN or infinite"
    if not math.isfinite(parity.rel_l2) or not math.isfinite(parity.rel_l2_reference):
        return f"{name} cannot be judged: the reference itself is not finite"
    if parity.ratio > MAX_RATIO:
        return (
            f"{name} is {parity.ratio:.3g} times as far from float64 as the reference in its precision "
            f"(rel_l2 {parity.rel_l2:.3g} against {parity.rel_l2_reference:.3g})"
        )
    if parity.typical_ratio > MAX_RATIO:
        return (
            f"{name} is typically {parity.typical_ratio:.3g} times as far from float64 as the reference in its "
            f"precision (worst: sample {parity.worst_sample}, {parity.worst_sample_ratio:.3g} times)"
        )
    return None


def exceeds_noise(parity: OutputParity) -> bool:
    """Return whether a tensor breaks the rule."""
    return departure("", parity) is not None
