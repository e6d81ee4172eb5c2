"""Models are built with the plugin, without it, and with a parser of TensorRT that ignores the plugin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import dec_plugins
from dec_export.engines.tensorrt.flavours import TENSORRT, TENSORRT_RTX
from dec_export.engines.tensorrt.plugin_use import check_plugin_layers, prepare_plugin
from dec_export.errors import EngineError
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.onnx_export.operators import operators_in
from dec_export.onnx_export.tracing import export
from dec_export.reference.model import DecModel


@pytest.fixture
def proto(small_model: DecModel) -> onnx.ModelProto:
    return export(lower(small_model), Forms(Solver.PLUGIN))


def test_without_the_plugin_the_bodies_are_written_out(proto: onnx.ModelProto) -> None:
    flat, use = prepare_plugin(TENSORRT_RTX, proto)
    assert not flat.functions
    assert use is not None
    assert (use.used, use.detail) == (False, "TensorRT for RTX takes no plugin written in Python")
    assert prepare_plugin(TENSORRT_RTX, flat) == (flat, None)


def test_with_the_plugin_every_kernel_is_compiled_before_tensorrt_asks(
    proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, registered = [], []
    support = dec_plugins.PluginSupport(True, "TensorRT 11.0 stores the kernels in its engines")
    monkeypatch.setattr(dec_plugins, "plugin_support", lambda: support)
    monkeypatch.setattr("dec_plugins.compiler.compile_kernel", lambda operator: compiled.append(operator.name))
    monkeypatch.setattr("dec_plugins.registration.register", lambda names: registered.extend(names))
    same, use = prepare_plugin(TENSORRT, proto)
    assert same is proto
    assert use is not None
    assert use.used
    assert f"{len(compiled)} nodes" in use.detail
    assert compiled == [operator.name for operator in operators_in(proto)]
    assert set(registered) >= {"WarpV1", "Convolve64x64Pool4V1", "ScoreV1"}


@pytest.mark.parametrize(("missing", "passes"), [(0, True), (1, False)])
def test_a_parser_that_takes_bodies_is_found_out(missing: int, passes: bool, proto: onnx.ModelProto) -> None:
    kinds = SimpleNamespace(PLUGIN_V3="plugin", CONVOLUTION="convolution")
    layers = [SimpleNamespace(type="plugin")] * (len(operators_in(proto)) - missing)
    layers += [SimpleNamespace(type="convolution")] * 3
    network: Any = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    if passes:
        check_plugin_layers(network, SimpleNamespace(LayerType=kinds), proto)
    else:
        with pytest.raises(EngineError, match=r"made \d+ plugin layers for the model's \d+ 'dec' operators"):
            check_plugin_layers(network, SimpleNamespace(LayerType=kinds), proto)
