"""What becomes of a model's `dec` operators while an engine is built: the plugin's kernels, or their bodies."""

from __future__ import annotations

from typing import Any

import onnx

from dec_export.engines.tensorrt.flavours import TENSORRT, Flavour
from dec_export.engines.tensorrt.plan import PluginUse
from dec_export.errors import EngineError
from dec_export.onnx_export.operators import operators_in
from dec_export.onnx_export.passes.inline import inline


def prepare_plugin(flavour: Flavour, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PluginUse | None]:
    """The model to parse, and what becomes of its operators; None when it has none.

    With the plugin, every kernel is compiled here, where an error can name its node: TensorRT keeps to itself what goes
    wrong when it asks for one. Without it, the bodies are written out, so that the layers which TensorRT lists are of
    nodes with known names. Raises EngineError when a kernel cannot be had.
    """
    if not proto.functions:
        return proto, None
    if flavour is not TENSORRT:
        return inline(proto), PluginUse(used=False, detail=f"{flavour.label} takes no plugin written in Python")
    from dec_plugins import plugin_support

    support = plugin_support()
    if not support.available:
        return inline(proto), PluginUse(used=False, detail=support.detail)
    from dec_plugins.compiler import compile_kernel
    from dec_plugins.registration import register

    operators = operators_in(proto)
    for operator in operators:
        compile_kernel(operator)
    register(operator.op_type for operator in operators)
    return proto, PluginUse(used=True, detail=f"{support.detail}: {len(operators)} nodes")


def check_plugin_layers(network: Any, trt: Any, proto: onnx.ModelProto) -> None:
    """Raise EngineError unless the parser made a plugin layer of every operator, rather than take its body."""
    wanted = len(operators_in(proto))
    kind = trt.LayerType.PLUGIN_V3
    found = sum(network.get_layer(i).type == kind for i in range(network.num_layers))
    if found != wanted:
        raise EngineError(
            f"TensorRT's parser made {found} plugin layers of the model's {wanted} 'dec' operators: build with "
            "--solver unroll, whose engine holds the operators' bodies."
        )
