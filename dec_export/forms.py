"""What was asked of a model's ONNX file: the form of its solver, its number formats, and its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dec_export.formats import Format


class Solver(str, Enum):
    """How the fixed-point iteration is written.

    UNROLL: its iterations one after another, in standard operators. LOOP: as an ONNX Loop, in which each sample ends
    at the recipe's tolerance. PLUGIN: as operators of the domain `dec`, which TensorRT runs as fused kernels and every
    other runtime as the standard operators in their bodies.
    """

    UNROLL = "unroll"
    LOOP = "loop"
    PLUGIN = "plugin"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Forms:
    """The form of one exported model.

    precision: the format of the backbone. solver_precision: that of the canonicalizers' convolutions; everything else
    is in float32. tap: the block or stage whose feature map is an output too, or None. expose_phi: whether the solved
    phis are outputs.
    """

    solver: Solver = Solver.UNROLL
    precision: Format = Format.FP32
    solver_precision: Format = Format.FP32
    tap: int | None = None
    expose_phi: bool = False
