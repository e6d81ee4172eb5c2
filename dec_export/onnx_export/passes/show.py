"""The rewriting that makes inner tensors outputs of a model, so that a runtime returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from dec_export.errors import ExportError
from dec_export.formats import Format
from dec_export.onnx_export.passes.base import Pass
from dec_export.onnx_export.passes.inline import inline


@dataclass(frozen=True)
class ShowTensors(Pass):
    """A rewriting that makes the inner tensors of these names outputs, and inlines the solves that hold them."""

    name: ClassVar[str] = "show tensors"
    requires: ClassVar[str] = "The model has tensors of these names, whose types it declares."
    ensures: ClassVar[str] = "Tensors of these names are outputs; one that is bfloat16 inside leaves as float32."

    tensors: Sequence[str]

    def apply(self, proto: ModelProto) -> ModelProto:
        shown = ModelProto()
        shown.CopyFrom(inline(proto, keep_operators=True) if proto.functions else proto)
        present = {output.name for output in shown.graph.output}
        known = {info.name: info for info in shown.graph.value_info}
        missing = [name for name in self.tensors if name not in known and name not in present]
        if missing:
            raise ExportError(
                f"The ONNX model has no tensor named {', '.join(missing)}: it was not written by dec-export."
            )
        for name in self.tensors:
            if name not in present:
                _widen_output(shown.graph, known[name])
                shown.graph.output.append(known[name])
        return shown


def _widen_output(graph: GraphProto, value: ValueInfoProto) -> None:
    """Return a bfloat16 tensor from the graph as float32 under its own name, because NumPy has no bfloat16."""
    if value.type.tensor_type.elem_type != Format.BF16.onnx:
        return
    narrow = f"{value.name}__narrow"
    for node in graph.node:
        node.input[:] = [narrow if name == value.name else name for name in node.input]
        node.output[:] = [narrow if name == value.name else name for name in node.output]
    graph.node.append(helper.make_node("Cast", [narrow], [value.name], name=f"{value.name}__wide", to=Format.FP32.onnx))
    graph.value_info.add().CopyFrom(value)
    graph.value_info[-1].name = narrow
    value.type.tensor_type.elem_type = Format.FP32.onnx
