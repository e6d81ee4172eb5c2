"""Where an engine first leaves the reference by more than the noise floor explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dec_export.names import describe
from dec_export.parity.gate import leaves_the_noise
from dec_export.parity.metrics import OutputParity


def trace_of(tensors: Mapping[str, OutputParity], order: Sequence[str]) -> dict[str, Any]:
    """Every tensor on the way, in the order of computation, and the first that is beyond the noise.

    order: names of all tensors of the reference. first: a name, or None. place: where that is, in words. missing: how
    many tensors of the reference the engine does not show.
    """
    compared = [name for name in order if name in tensors]
    first = next((name for name in compared if leaves_the_noise(tensors[name])), None)
    return {
        "first": first,
        "place": None if first is None else _place(first, compared, order),
        "missing": len(order) - len(compared),
        "tensors": {
            name: {
                "rel_l2": tensors[name].rel_l2,
                "rel_l2_reference": tensors[name].rel_l2_reference,
                "ratio": tensors[name].ratio,
                "typical_ratio": tensors[name].typical_ratio,
                "nonfinite": tensors[name].nonfinite,
            }
            for name in compared
        },
    }


def _place(first: str, compared: Sequence[str], order: Sequence[str]) -> str:
    """A place is known only when what comes just before it was compared as well."""
    before = order[: order.index(first)]
    if not before or before[-1] in compared:
        return describe(first)
    return f"{describe(first)} or before it, where the engine shows nothing"
