"""The one door between dec-export and the TensorRT plugin.

It tells whether the plugin can be used here, and what becomes of a model's `dec` operators while an engine is built:
the plugin's kernels, or the operators' bodies.
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
    """Whether an engine of TensorRT that is built here would hold the plugin's kernels, and why, or why not."""
    return dec_plugins.plugin_support()


def prepare_plugin(flavour: Flavour, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PluginUse | None]:
    """The model to parse, and what becomes of its operators; None when it has none.

    With the plugin, every kernel is compiled here, where an error can name its node. Without it, the bodies are written
    out, so that the layers which TensorRT lists are of nodes with known names. Raises EngineError when a kernel cannot
    be had.
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
    """Raise EngineError unless the parser made a plugin layer of every operator, rather than take its body.

    network, trt: TensorRT's network and module, which have no types.
    """
    from dec_export.onnx_export.operators import operators_in

    wanted = len(operators_in(proto))
    kind = trt.LayerType.PLUGIN_V3
    found = sum(network.get_layer(i).type == kind for i in range(network.num_layers))
    if found != wanted:
        raise EngineError(
            f"TensorRT's parser made {found} plugin layers of the model's {wanted} 'dec' operators: build with "
            "--solver unroll, whose engine holds the operators' bodies."
        )
