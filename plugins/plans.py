"""The plan of a `dec` node: its kernel, the kernel's constants, and the number of programs.

A plan is computed from the node's fields; this module imports neither the Triton language nor TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass

from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.onnx_export.operators import (
    ActivateV1,
    ConvolveV1,
    KeepV1,
    MixV1,
    Operator,
    ScoreV1,
    WarpV1,
)

# A program of `score` keeps a whole pooled map in registers.
MAX_SCORE_PIXELS = 64 * 64
# A tile of the largest product has this many rows, and a matrix unit multiplies at least this many.
_TILE_PIXELS = 128
_SMALLEST_DOT = 16
# A tile of that product holds this many bytes of one pixel's channels.
_TILE_DEPTH_BYTES = 64
# Indices within a sample are 32-bit numbers.
_LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class KernelPlan:
    """The parameters with which one node's kernel is compiled and launched.

    kernel: its name in `kernels.py`. constants: its compile-time arguments. grid: the numbers of programs along x, y
    and z, where None stands for the batch. warps, stages: its numbers of warps and of pipeline stages.
    """

    kernel: str
    constants: dict[str, int | float | str]
    grid: tuple[int | None, int | None, int | None]
    warps: int
    stages: int = 1

    def grid_for(self, batch: int) -> tuple[int, int, int]:
        """Return the numbers of programs along x, y and z for a batch."""
        x, y, z = (batch if n is None else n for n in self.grid)
        return x, y, z


def plan_kernel(operator: Operator) -> KernelPlan:
    """Return the plan of a node. Raises EngineError, which names the node, for sizes that no kernel supports."""
    match operator:
        case WarpV1():
            return _warp(operator)
        case ConvolveV1():
            return _convolve(operator)
        case ActivateV1():
            return _activate(operator)
        case ScoreV1():
            return _score(operator)
        case MixV1():
            return _mix(operator)
        case KeepV1():
            return _keep(operator)
    raise EngineError(
        f"Node '{operator.name}' ({operator.op_type}): the plugin has no such kernel: build with --solver unroll."
    )


def _power_of_two_from(n: int, smallest: int = 1) -> int:
    return max(smallest, 1 << (n - 1).bit_length())


def _refuse(operator: Operator, reason: str) -> EngineError:
    return EngineError(
        f"Node '{operator.name}' ({operator.op_type}): {reason}, which the plugin's kernels do not support: "
        "build with --solver unroll."
    )


def _warp(node: WarpV1) -> KernelPlan:
    rows, columns = 16, 64
    padded = _power_of_two_from(node.resolution, _SMALLEST_DOT)
    constants: dict[str, int | float | str] = {
        "CHANNELS": node.channels,
        "HEIGHT": node.height,
        "WIDTH": node.width,
        "PADDING": node.padding,
        "R": node.resolution,
        "R_PAD": padded,
        "SHARPNESS": node.SHARPNESS,
        "ROWS": rows,
        "COLUMNS": columns,
    }
    grid = (-(-(node.width + 2 * node.padding) // columns), -(-(node.height + 2 * node.padding) // rows), None)
    return KernelPlan("warp", constants, grid, warps=4)


def _convolve(node: ConvolveV1) -> KernelPlan:
    slots = _power_of_two_from(node.pool**2)
    if slots > _TILE_PIXELS:
        raise _refuse(node, f"it pools {node.pool} x {node.pool} pixels, more than {_TILE_PIXELS}")
    values = (node.height + node.kernel - 1) * (node.width + node.kernel - 1) * node.channels_in
    if values > _LARGEST_INDEX:
        raise _refuse(node, f"one sample of its input has {values} values, more than {_LARGEST_INDEX}")
    block_n = min(64, _power_of_two_from(node.channels_out, _SMALLEST_DOT))
    constants: dict[str, int | float | str] = {
        "CHANNELS_IN": node.channels_in,
        "CHANNELS_OUT": node.channels_out,
        "HEIGHT": node.height,
        "WIDTH": node.width,
        "KERNEL": node.kernel,
        "POOL": node.pool,
        "SLOTS": slots,
        "WINDOWS": _TILE_PIXELS // slots,
        "BLOCK_N": block_n,
        "BLOCK_K": _TILE_DEPTH_BYTES // node.dtype.size,
        # Three products with ten bits each give one product with almost float32's 24 bits.
        "PRECISION": "tf32x3" if node.dtype is Format.FP32 else "ieee",
    }
    grid = (node.bands, -(-node.channels_out // block_n), None)
    return KernelPlan("convolve", constants, grid, warps=8, stages=3)


def _activate(node: ActivateV1) -> KernelPlan:
    constants: dict[str, int | float | str] = {
        "CHANNELS": node.channels,
        "HEIGHT": node.height,
        "WIDTH": node.width,
        "BANDS": node.bands,
        "BANDS_PAD": _power_of_two_from(node.bands),
        "PADDING": node.padding,
        "OFFSET": node.offset,
        "EPS": node.eps,
        "BLOCK": 1024,
    }
    return KernelPlan("activate", constants, (node.channels, None, 1), warps=4)


def _score(node: ScoreV1) -> KernelPlan:
    height, width = (_power_of_two_from(n, _SMALLEST_DOT) for n in (node.height, node.width))
    if height * width > MAX_SCORE_PIXELS:
        raise _refuse(node, f"its map has {node.height} x {node.width} pixels, more than {MAX_SCORE_PIXELS}")
    constants: dict[str, int | float | str] = {
        "CHANNELS": node.channels,
        "HEIGHT": node.height,
        "WIDTH": node.width,
        "BANDS": node.bands,
        "R": node.resolution,
        "H_PAD": height,
        "W_PAD": width,
        "BANDS_PAD": _power_of_two_from(node.bands),
        "R_PAD": _power_of_two_from(node.resolution, _SMALLEST_DOT),
        "OFFSET": node.offset,
        "EPS": node.eps,
        # Each of 256 threads holds 32 values.
        "BLOCK_C": max(1, min(8192 // (height * width), _power_of_two_from(node.channels))),
    }
    return KernelPlan("score", constants, (None, 1, 1), warps=8)


def _mix(node: MixV1) -> KernelPlan:
    size = 2 * node.resolution * (node.resolution - 1)
    constants: dict[str, int | float | str] = {
        "MEMORY": node.memory,
        "MEMORY_PAD": _power_of_two_from(node.memory),
        "UNUSED": node.memory - node.count,
        "SIZE": size,
        "SIZE_PAD": _power_of_two_from(size),
        "REGULARISATION": node.regularisation,
        "DAMPING": node.damping,
    }
    return KernelPlan("mix", constants, (None, 1, 1), warps=4)


def _keep(node: KeepV1) -> KernelPlan:
    size = 2 * node.resolution * (node.resolution - 1)
    return KernelPlan("keep", {"SIZE": size, "SIZE_PAD": _power_of_two_from(size)}, (None, 1, 1), warps=4)
