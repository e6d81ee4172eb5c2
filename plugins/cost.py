"""What a solve costs at least: its products, and the memory that its kernels read and write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from dec_export.onnx_export.operators import ConvolveV1, Operator


@dataclass(frozen=True)
class Cost:
    """flop: multiplications and additions of the convolutions; bytes: each tensor once for each kernel that uses it."""

    flop: int
    bytes: int


def cost_of(operators: Iterable[Operator], batch: int) -> Cost:
    """The cost of these operators for a batch. What a kernel reads more than once is taken to come from a cache."""
    flop = moved = 0
    for operator in operators:
        if isinstance(operator, ConvolveV1):
            depth = operator.channels_in * operator.kernel**2
            flop += 2 * batch * operator.height * operator.width * depth * operator.channels_out
        for spec in (*operator.inputs(), *operator.outputs()):
            moved += prod(spec.sizes(batch)) * spec.format.size
    return Cost(flop, moved)
