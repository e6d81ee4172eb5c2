"""The least cost of a solve: its products, and the memory that its kernels read and write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from dec_export.onnx_export.operators import ConvolveV1, Operator


@dataclass(frozen=True)
class Cost:
    """A cost. flop: the operations of the convolutions. bytes: each tensor's size for every kernel that uses it."""

    flop: int
    bytes: int


def cost_of(operators: Iterable[Operator], batch: int) -> Cost:
    """Return the cost of these operators for a batch, if a kernel reads each tensor from memory only once."""
    flop = moved = 0
    for operator in operators:
        if isinstance(operator, ConvolveV1):
            depth = operator.channels_in * operator.kernel**2
            flop += 2 * batch * operator.height * operator.width * depth * operator.channels_out
        for spec in (*operator.inputs(), *operator.outputs()):
            moved += prod(spec.sizes(batch)) * spec.format.size
    return Cost(flop, moved)
