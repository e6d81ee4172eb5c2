"""Where an engine first leaves the reference by more than the noise floor explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dec_export.onnx_export.names import describe
from dec_export.parity.gate import leaves_the_noise
from dec_export.parity.metrics import OutputParity


def trace_of(tensors: Mapping[str, OutputParity]) -> dict[str, Any]:
    """Every tensor on the way, in the order of computation, and the first that is beyond the noise.

    first: its name, or None. place: where that is, in words.
    """
    first = next((name for name, parity in tensors.items() if leaves_the_noise(parity)), None)
    return {
        "first": first,
        "place": None if first is None else describe(first),
        "tensors": {
            name: {
                "rel_l2": parity.rel_l2,
                "rel_l2_reference": parity.rel_l2_reference,
                "ratio": parity.ratio,
                "typical_ratio": parity.typical_ratio,
                "nonfinite": parity.nonfinite,
            }
            for name, parity in tensors.items()
        },
    }
