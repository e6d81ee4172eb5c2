"""The only module of dec-export that uses the TensorRT plugin.

It finds out whether the plugin can be used here, and decides how an engine computes a model's `dec` operators: with the
plugin's kernels, or with the operators' bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any  # TensorRT ships no types

from dec_export.engines.tensorrt.flavours import TENSORRT, Flavour
from dec_export.engines.tensorrt.plan import PluginUse
from dec_export.errors import EngineError

if TYPE_CHECKING:
    import onnx

    # A type checker sees the source tree, where the package that is installed as `dec_plugins` is the folder `plugins`.
    import plugins as dec_plugins
    from plugins import PluginSupport
else:
    import dec_plugins


def plugin_support() -> PluginSupport:
    """Find out whether a TensorRT engine that is built here would hold the plugin's kernels, and the reason."""
    return dec_plugins.plugin_support()


def prepare_plugin(flavour: Flavour, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PluginUse | None]:
    """Return the model that TensorRT parses, and how its `dec` operators are computed, or None if it has none.

    With the plugin, every kernel is compiled here, so that an error can name the node. Without the plugin, the
    operators' bodies are inlined, so that the layers that TensorRT lists belong to nodes with known names. Raises
    EngineError when a kernel cannot be compiled.
    """
    from dec_export.onnx_export.operators import operators_in
    from dec_export.onnx_export.passes.inline import inline

    if not proto.functions:
        return proto, None
    if flavour is not TENSORRT:
        return inline(proto), PluginUse(used=False, detail=f"{flavour.label} takes no plugin written in Python")
    support = plugin_support()
    if not support.available:
        return inline(proto), PluginUse(used=False, detail=support.detail)
    operators = operators_in(proto)
    dec_plugins.make_ready(operators)
    return proto, PluginUse(used=True, detail=f"{support.detail}: {len(operators)} nodes")


def check_plugin_layers(network: Any, trt: Any, proto: onnx.ModelProto) -> None:
    """Raise EngineError unless the parser made a plugin layer for every operator instead of using its body.

    network, trt: TensorRT's network and module, which have no types.
    """
    from dec_export.onnx_export.operators import operators_in

    wanted = len(operators_in(proto))
    kind = trt.LayerType.PLUGIN_V3
    found = sum(network.get_layer(i).type == kind for i in range(network.num_layers))
    if found != wanted:
        raise EngineError(
            f"TensorRT's parser made {found} plugin layers for the model's {wanted} 'dec' operators: build with "
            "--solver unroll, whose engine holds the operators' bodies."
        )
