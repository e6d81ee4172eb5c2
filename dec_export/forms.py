"""The form of a model's ONNX file: its solver, its number formats, and its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dec_export.formats import Format


class Solver(str, Enum):
    """The form of the fixed-point iteration in the ONNX graph.

    UNROLL: the iterations follow one another in standard operators. LOOP: an ONNX Loop, in which each sample stops at
    the recipe's tolerance. PLUGIN: operators of the domain `dec`, which TensorRT runs as fused kernels, and every other
    runtime as the standard operators in their bodies.
    """

    UNROLL = "unroll"
    LOOP = "loop"
    PLUGIN = "plugin"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Forms:
    """The form of one exported model.

    solver: the form of the solver. precision: the format of the backbone. solver_precision: the format of the
    canonicalizers' convolutions; everything else is in float32. tap: the block or stage whose feature map is an
    additional output, or None. expose_phi: whether the solved phis are outputs.
    """

    solver: Solver = Solver.UNROLL
    precision: Format = Format.FP32
    solver_precision: Format = Format.FP32
    tap: int | None = None
    expose_phi: bool = False
