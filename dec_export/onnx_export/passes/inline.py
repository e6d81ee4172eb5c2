"""The inlining of functions, which gives standard ONNX for runtimes that do not know the `dec` operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx.inliner
import onnx.shape_inference

from dec_export.names import is_solve, original_name
from dec_export.onnx_export.operators import DOMAIN
from dec_export.onnx_export.passes.base import Pass


@dataclass(frozen=True)
class Inline(Pass):
    """A rewriting that replaces every call of a function by the function's nodes.

    keep_operators: whether only the solves are inlined, so that the operators inside them stay functions.
    """

    name: ClassVar[str] = "inline"
    requires: ClassVar[str] = "The model is valid ONNX; its functions, if there are any, are of the domain `dec`."
    ensures: ClassVar[str] = (
        "Every node has a name of its own, every tensor has a type, and the tensors of `names.solver_tensor` are "
        "tensors of the graph under their own names."
    )

    keep_operators: bool = False

    def apply(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        flat = _solves_written_out(proto) if self.keep_operators else _all_written_out(proto)
        _restore_names(flat.graph)
        _name_nodes(flat.graph)
        return onnx.shape_inference.infer_shapes(flat, data_prop=True)


def inline(proto: onnx.ModelProto, *, keep_operators: bool = False) -> onnx.ModelProto:
    """Return the model after the pass `Inline`."""
    return Inline(keep_operators).apply(proto)


def _solves_written_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    solves = [(DOMAIN, function.name) for function in proto.functions if is_solve(function.name)]
    return onnx.inliner.inline_selected_functions(proto, solves)


def _all_written_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    flat = onnx.inliner.inline_local_functions(proto)
    kept = [opset for opset in flat.opset_import if opset.domain != DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    return flat


def _restore_names(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [original_name(name) for name in names]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _restore_names(attribute.g)
    for value in graph.value_info:
        value.name = original_name(value.name)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name each node after its first output, because the names of nodes are not unique after inlining."""
    for node in graph.node:
        node.name = node.output[0]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_nodes(attribute.g)
