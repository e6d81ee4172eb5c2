"""The solver as one `dec` function for each canonicalized layer, which is made of the operators in `operators`.

The function of layer i, Solve{i}V1, computes the layer's phi from the prepared image and the layer's weights. TensorRT
replaces a call by the operators inside the function; every other runtime also replaces these by their bodies.

The solver has two forms. In the unrolled form, every iteration is written out and always runs. In the looped form, the
accelerated iterations are an ONNX Loop, in which a sample does not change once its residual is below the tolerance, and
which ends when the residuals of all samples are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from dec_export.formats import Format
from dec_export.lowering.block import LoweredBlock
from dec_export.lowering.matrices import smoothing_matrix
from dec_export.lowering.model import LoweredCanonicalizer, LoweredStep
from dec_export.names import solve_name, solver_tensor
from dec_export.onnx_export.bodies import OPSET, function_of, loop_functions
from dec_export.onnx_export.operators import (
    DOMAIN,
    ActivateV1,
    ConvolveV1,
    KeepV1,
    MixV1,
    Operator,
    ScoreV1,
    WarpV1,
)
from dec_export.reference.anderson import AndersonOptions
from dec_export.reference.warp import Phi

# The values that a loop passes from one iteration to the next.
_STATE = ("iterate", "iterates", "images", "best", "smallest", "done")
_LOOP_CONTROL = ("iteration", "condition")
_LARGEST = torch.finfo(torch.float32).max


class OperatorCanonicalizer(nn.Module):
    """A LoweredCanonicalizer that torch.onnx.export writes as one node for each layer; it computes nothing itself.

    A canonicalizer of another kind has no solver, and is written as it is.

    solves: the solve of each layer, which is the function that the layer's node calls.
    """

    def __init__(self, lowered: nn.Module, *, looped: bool = False) -> None:
        super().__init__()
        self.lowered = lowered
        self.solves: list[Solve] = []
        if isinstance(lowered, LoweredCanonicalizer):
            steps = cast("list[LoweredStep]", list(lowered.steps))
            self.solves = [Solve(index, step, lowered.options, looped=looped) for index, step in enumerate(steps)]
        self.layers = nn.ModuleList(_SolveNode(solve) for solve in self.solves)

    def forward(self, image: Tensor) -> list[Phi]:
        if not isinstance(self.lowered, LoweredCanonicalizer):
            phis: list[Phi] = self.lowered(image)
            return phis
        prepared = self.lowered.prepared(image)
        return [layer(prepared) for layer in self.layers]

    def functions(self) -> list[onnx.FunctionProto]:
        """Return the functions of the layers and of the operators inside them."""
        found = {function.name: function for solve in self.solves for function in solve.functions()}
        return list(found.values())


class _SolveNode(nn.Module):
    def __init__(self, solve: Solve) -> None:
        super().__init__()
        self.op_type = f"{DOMAIN}::{solve.name}"
        self.resolution = solve.step.coarse_resolution
        weights = solve.weights()
        self.names = list(weights)
        for name, value in weights.items():
            self.register_buffer(name, value)

    def forward(self, prepared: Tensor) -> Phi:
        phi = torch.onnx.ops.symbolic(
            self.op_type,
            (prepared, *(getattr(self, name) for name in self.names)),
            dtype=torch.float32,
            shape=(prepared.shape[0], 2, self.resolution, self.resolution - 1),
            version=1,
        )
        return Phi(phi[:, 0], phi[:, 1])


def blur_matrices(resolution: int) -> tuple[Tensor, Tensor]:
    """Return the matrices of the warp's smoothing minus the identity, float64: rows (R, R) and steps (R-1, R-1).

    The smoothed phi is (I + rows) phi (I + steps). Without the identities, the tiny side taps keep their digits.
    """
    rows, steps = (smoothing_matrix(n) - torch.eye(n, dtype=torch.float64) for n in (resolution, resolution - 1))
    return rows, steps.T


def _weights(step: LoweredStep) -> dict[str, Tensor]:
    """Return the inputs of a layer's function beside the image, in order."""
    grid = step.warp.grid
    like = grid.spread_x
    blur_rows, blur_steps = blur_matrices(step.coarse_resolution)
    weights = {
        "blur_rows": blur_rows,
        "blur_steps": blur_steps,
        "spread_x": grid.spread_x,
        "accumulate_x": grid.accumulate_x,
        "accumulate_y": grid.accumulate_y,
        "spread_y": grid.spread_y,
    }
    for i, block in enumerate(step.lowered_blocks):
        weights |= {
            f"shares_{i}": torch.tensor(_shares(step.sizes[i][0], block), dtype=torch.float64)[:, None],
            f"scale_{i}": block.scale,
            f"shift_{i}": block.shift,
        }
    head = step.head
    weights |= {
        "head_weight": head.weight,
        "head_scale": head.scale,
        "head_shift": head.shift,
        "pool_rows": head.pool_rows,
        "pool_columns": head.pool_columns,
    }
    weights = {name: value.to(like.dtype).contiguous() for name, value in weights.items()}
    return weights | {f"weight_{i}": block.weight for i, block in enumerate(step.lowered_blocks)}


def _shares(height: int, block: LoweredBlock) -> list[float]:
    """Return the share of the map's rows in each band of `pool_rate` rows."""
    rate = block.pool_rate
    return [min(rate, height - first) / height for first in range(0, height, rate)]


@dataclass
class Solve:
    """The solve of one layer, which writes the nodes of the layer's function in the order of computation."""

    index: int
    step: LoweredStep
    options: AndersonOptions
    looped: bool = False
    _nodes: list[onnx.NodeProto] = field(default_factory=list, init=False, repr=False)
    _operators: list[Operator] = field(default_factory=list, init=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the function, which no other layer has."""
        return solve_name(self.index)

    @property
    def memory(self) -> int:
        """The largest number of pairs that the solver keeps in its memory."""
        return min(self.options.memory, self.options.max_iter - 1)

    @property
    def dtype(self) -> Format:
        """The format of the convolutions."""
        return Format.of_torch(self.step.lowered_blocks[0].weight.dtype)

    def weights(self) -> dict[str, Tensor]:
        """Return the function's inputs beside the image by name, in order."""
        return _weights(self.step)

    def operators(self) -> list[Operator]:
        """Return the operators of the function's nodes, in order."""
        self._write()
        return self._operators

    def function(self) -> onnx.FunctionProto:
        """Return the function Solve{i}V1: image (B, c, H, W) and weights -> phi (B, 2, R, R-1)."""
        self._write()
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_function(DOMAIN, self.name, ["image", *self.weights()], ["phi"], self._nodes, imports)

    def functions(self) -> list[onnx.FunctionProto]:
        """Return the functions that `function` calls, followed by that function itself."""
        inner = {operator.op_type: function_of(operator) for operator in self.operators()}
        return [*inner.values(), *(loop_functions(self.memory) if self.looped else []), self.function()]

    def _write(self) -> None:
        self._nodes, self._operators = [], []
        if self.looped:
            self._write_loop()
        else:
            self._write_unrolled()

    def _write_unrolled(self) -> None:
        if self.options.max_iter <= 2:  # nothing is mixed, and the solution is one step from the identity
            self._evaluate(0, None, result="phi")
            return
        last = self.options.max_iter - 1
        image = self._evaluate(0, None)
        iterate, (iterates, images) = image, self._first_memory(image)
        best, smallest = "", ""
        for k in range(1, last + 1):
            image = self._evaluate(k, iterate)
            if k == 2:
                best, smallest = image, self._constant_like(image, (1, 1, 1), _LARGEST, "unbounded")
            if k >= 2:
                best, smallest = self._keep(k, iterate, image, best, smallest)
            if k < last:
                iterate, iterates, images = self._mix(k, iterates, images, iterate, image)
        self._evaluate(last + 1, best, result="phi")

    def _write_loop(self) -> None:
        first = self._evaluate(0, None)
        iterates, images = self._first_memory(first)
        image = self._evaluate(1, first)
        iterate, iterates, images = self._mix(1, iterates, images, first, image)
        unbounded = self._constant_like(image, (1, 1, 1), _LARGEST, "unbounded")
        nothing = self._constant_like(image, (1, 1, 1), 0.0, "nothing")
        done = self._standard("Cast", [nothing], "none_done", to=TensorProto.BOOL)
        limit = self._standard("Constant", [], "limit", value_int=self.options.max_iter - 2)
        start = self._standard("Constant", [], "start", value=helper.make_tensor("value", TensorProto.BOOL, [], [True]))
        outer, self._nodes = self._nodes, []
        body = self._loop_body()
        self._nodes = outer
        state = [iterate, iterates, images, image, unbounded, done]
        outputs = [f"{name}_found" for name in _STATE]
        self._nodes.append(
            helper.make_node("Loop", [limit, start, *state], outputs, name=f"solve_{self.index}/loop", body=body)
        )
        self._evaluate(self.options.max_iter, "best_found", result="phi")

    def _loop_body(self) -> onnx.GraphProto:
        """Return the graph of one accelerated iteration: it evaluates f, keeps the best image, and mixes the memory."""
        image = self._evaluate("any", "iterate")
        next_best = ["next_best", "next_smallest", "next_done"]
        next_memory = ["next_iterate", "next_iterates", "next_images"]
        # The memory holds two pairs before the first iteration of the loop, which adds a third.
        spare = self._standard("Constant", [], "spare", value_int=self.memory - 3)
        unused = self._standard("Sub", [spare, "iteration"], "unused")
        options = self.options
        self._call("KeepOpen", ["iterate", image, *_STATE[3:]], next_best, bound=options.tolerance**2)
        mixing: dict[str, float] = {"regularisation": options.regularisation, "damping": options.damping}
        self._call("MixCounted", ["iterates", "images", "iterate", image, unused], next_memory, **mixing)
        still_open = self._standard("Not", ["next_done"], "next_open")
        number = self._standard("Cast", [still_open], "next_open_number", to=TensorProto.FLOAT)
        largest = self._standard("ReduceMax", [number], "any_open_number", keepdims=0)
        proceed = self._standard("Cast", [largest], "proceed", to=TensorProto.BOOL)
        types = [TensorProto.INT64, TensorProto.BOOL, *[TensorProto.FLOAT] * 5, TensorProto.BOOL]
        inputs = [
            helper.make_tensor_value_info(name, kind, [] if name in _LOOP_CONTROL else None)
            for name, kind in zip([*_LOOP_CONTROL, *_STATE], types, strict=True)
        ]
        results = [proceed, *next_memory, *next_best]
        outputs = [
            helper.make_tensor_value_info(name, kind, [] if name == proceed else None)
            for name, kind in zip(results, types[1:], strict=True)
        ]
        return helper.make_graph(self._nodes, f"solve_{self.index}_iteration", inputs, outputs)

    # `onnx.helper.make_node` takes attributes of every type, and declares them as Any: so do `_call` and `_standard`.
    def _call(self, function: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = f"solve_{self.index}/f_any/{function}"
        self._nodes.append(helper.make_node(function, inputs, outputs, name=name, domain=DOMAIN, **attributes))

    def _evaluate(self, k: int | str, phi: str | None, result: str | None = None) -> str:
        """Write one application of f at phi, or at the identity without phi, where nothing is sampled."""
        step = self.step
        blocks = step.lowered_blocks
        map_ = self._reflected_image() if phi is None else self._warp(k, phi)
        for i, block in enumerate(blocks):
            height, width = step.sizes[i]
            pooled = (height // block.pool_rate, width // block.pool_rate)
            convolve = ConvolveV1(
                name=self._node_name(k, f"convolve_{i}"),
                channels_in=block.weight.shape[1],
                channels_out=block.weight.shape[0],
                height=height,
                width=width,
                kernel=block.weight.shape[-1],
                pool=block.pool_rate,
                dtype=self.dtype,
            )
            peak, moments = self._add(convolve, [map_, f"weight_{i}"], [f"peak_{k}_{i}", f"moments_{k}_{i}"])
            normalised: dict[str, Any] = {  # the fields that ActivateV1 and ScoreV1 share, each of its own type
                "channels": block.weight.shape[0],
                "height": pooled[0],
                "width": pooled[1],
                "bands": convolve.bands,
                "offset": block.offset,
                "eps": block.eps,
                "dtype": self.dtype,
            }
            inputs = [peak, moments, f"shares_{i}", f"scale_{i}", f"shift_{i}"]
            if i + 1 < len(blocks):
                activate = ActivateV1(
                    name=self._node_name(k, f"activate_{i}"), padding=blocks[i + 1].padding, **normalised
                )
                (map_,) = self._add(activate, inputs, [f"padded_{k}_{i}"])
        score = ScoreV1(name=self._node_name(k, "score"), resolution=step.coarse_resolution, **normalised)
        head = ["head_weight", "head_scale", "head_shift", "pool_rows", "pool_columns"]
        (image,) = self._add(score, [*inputs, *head], [result or solver_tensor(self.index, "image", k)])
        return image

    def _warp(self, k: int | str, phi: str) -> str:
        block, (height, width) = self.step.lowered_blocks[0], self.step.sizes[0]
        warp = WarpV1(
            name=self._node_name(k, "warp"),
            channels=block.weight.shape[1],
            height=height,
            width=width,
            padding=block.padding,
            resolution=self.step.coarse_resolution,
            dtype=self.dtype,
        )
        matrices = ["blur_rows", "blur_steps", "spread_x", "accumulate_x", "accumulate_y", "spread_y"]
        return self._add(warp, ["image", phi, *matrices], [f"warped_{k}"])[0]

    def _mix(self, k: int, iterates: str, images: str, iterate: str, image: str) -> list[str]:
        mix = MixV1(
            name=self._node_name(k, "mix"),
            resolution=self.step.coarse_resolution,
            memory=self.memory,
            count=min(k + 1, self.memory),
            regularisation=self.options.regularisation,
            damping=self.options.damping,
        )
        outputs = [solver_tensor(self.index, "iterate", k + 1), f"iterates_{k}", f"images_{k}"]
        return self._add(mix, [iterates, images, iterate, image], outputs)

    def _keep(self, k: int, iterate: str, image: str, best: str, smallest: str) -> list[str]:
        keep = KeepV1(name=self._node_name(k, "keep"), resolution=self.step.coarse_resolution)
        return self._add(keep, [iterate, image, best, smallest], [f"best_{k}", f"smallest_{k}"])

    def _add(self, operator: Operator, inputs: list[str], outputs: list[str]) -> list[str]:
        self._operators.append(operator)
        self._nodes.append(operator.node(inputs, outputs))
        return outputs

    def _node_name(self, k: int | str, name: str) -> str:
        return f"solve_{self.index}/f_{k}/{name}"

    def _standard(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        name = f"solve_{self.index}/{output}"
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def _numbers(self, name: str, *values: int) -> str:
        return self._standard("Constant", [], name, value_ints=list(values))

    def _reflected_image(self) -> str:
        padding = self.step.lowered_blocks[0].padding
        pads = self._numbers("pads", *([0, 0, padding, padding] * 2))
        padded = self._standard("Pad", ["image", pads], "padded_image", mode="reflect")
        if self.dtype is Format.FP32:
            return padded
        return self._standard("Cast", [padded], "rounded_image", to=self.dtype.onnx)

    def _constant_like(self, like: str, shape: tuple[int, ...], value: float, name: str) -> str:
        """Write a tensor (B, *shape) that is full of one value and has the batch of `like`."""
        tensor = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
        return self._standard("ConstantOfShape", [self._shape(like, shape, name)], name, value=tensor)

    def _shape(self, like: str, shape: tuple[int, ...], name: str) -> str:
        batch = self._standard("Shape", [like], f"{name}_batch", start=0, end=1)
        return self._standard("Concat", [batch, self._numbers(f"{name}_rest", *shape)], f"{name}_shape", axis=0)

    def _first_memory(self, image: str) -> tuple[str, str]:
        """Write a memory that holds the first pair, the constant phi and its image, in every place.

        Places that are not in use have no weight in the mixing.
        """
        r = self.step.coarse_resolution
        shape = (self.memory, 2, r, r - 1)
        ones = self._constant_like(image, shape, 1.0, "first_iterates")
        column = self._standard("Unsqueeze", [image, self._numbers("memory_axis", 1)], "image_column")
        return ones, self._standard("Expand", [column, "first_iterates_shape"], "first_images")
