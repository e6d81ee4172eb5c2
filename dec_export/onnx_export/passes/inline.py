"""Functions written out where they are called: standard ONNX, for whatever does not know the `dec` operators."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx.shape_inference

from dec_export.names import is_solve, original_name
from dec_export.onnx_export.operators import DOMAIN


def inline(proto: onnx.ModelProto, *, keep_operators: bool = False) -> onnx.ModelProto:
    """The same model without functions. Every node has a name of its own, every tensor a type.

    The tensors of `names.solver_tensor` keep their names. With `keep_operators`, only the solves are written out, and
    the operators that they are made of stay functions.
    """
    if keep_operators:
        solves = [(DOMAIN, function.name) for function in proto.functions if is_solve(function.name)]
        flat = onnx.inliner.inline_selected_functions(proto, solves)
    else:
        flat = onnx.inliner.inline_local_functions(proto)
        kept = [opset for opset in flat.opset_import if opset.domain != DOMAIN]
        del flat.opset_import[:]
        flat.opset_import.extend(kept)
    _restore_names(flat.graph)
    _name_nodes(flat.graph)
    return onnx.shape_inference.infer_shapes(flat, data_prop=True)


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
    """A tensor has one maker, so its name is unique; names inside functions are not, once they are written out."""
    for node in graph.node:
        node.name = node.output[0]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_nodes(attribute.g)
