"""The registration of the `dec` operators as TensorRT plugins, whose kernels are stored inside an engine.

TensorRT's Python modules and objects have no types that mypy could read, so they are `Any` here.

TensorRT calls these plugins ahead-of-time Quickly Deployable Plugins. During a build, TensorRT asks for each node's
outputs, PTX and launch dimensions. The engine runs anywhere without this package.
"""

# TensorRT reads the annotations of what is registered, so they are made at run time, of its own types.

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter, Signature
from types import GenericAlias
from typing import Any

from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.onnx_export.operators import DOMAIN, check_tensors, kind_of, read_config

from .compiler import compile_kernel
from .plans import plan_kernel


def register(op_types: Iterable[str]) -> list[str]:
    """Register operators with the TensorRT of this process, and return the names that were not registered before.

    Raises EngineError when TensorRT is not installed, or cannot store ahead-of-time plugins.
    """
    from . import plugin_support

    support = plugin_support()
    if not support.available:
        raise EngineError(f"The plugin cannot be registered: {support.detail}.")
    import tensorrt as trt
    import tensorrt.plugin as trtp

    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise EngineError(f"The plugin cannot be registered: TensorRT {trt.__version__} has no ahead-of-time plugins.")
    known = trt.get_plugin_registry()
    new = [name for name in dict.fromkeys(op_types) if known.get_creator(name, "1", DOMAIN) is None]
    for name in new:
        _register(name, trt, trtp)
    return new


def _register(name: str, trt: Any, trtp: Any) -> None:
    kind = kind_of(name)
    if kind is None:
        raise EngineError(f"The plugin cannot be registered: '{name}' is no operator of this version of dec-export.")
    input_names, output_names = kind.tensor_names()
    inputs, outputs = len(input_names), len(output_names)
    outcome = GenericAlias(tuple, (trtp.TensorDesc,) * outputs)
    described = trtp.TensorDesc if outputs == 1 else outcome

    def describe(*tensors: Any, config: str) -> Any:
        operator = read_config(name, config)
        check_tensors(operator, [_facts(tensor) for tensor in tensors], operator.inputs())
        batch = tensors[0].shape_expr[0]
        found = tuple(
            trtp.from_shape_expr((batch, *spec.shape[1:]), _trt_dtype(spec.format, trt)) for spec in operator.outputs()
        )
        return found[0] if outputs == 1 else found

    def implement(*arguments: Any) -> Any:
        tensors, config = arguments[:inputs], arguments[inputs]
        operator = read_config(name, config)
        plan, kernel = plan_kernel(operator), compile_kernel(operator)
        batch = tensors[0].shape_expr[0]
        launch = trtp.KernelLaunchParams(block_x=kernel.threads, shared_mem=kernel.shared_bytes)
        launch.grid_x, launch.grid_y, launch.grid_z = (batch if n is None else n for n in plan.grid)
        return kernel.name, kernel.ptx, launch, trtp.SymIntExprs(0)

    launched = GenericAlias(tuple, (str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs))
    describe.__signature__ = _signature(input_names, trtp, {}, described)  # type: ignore[attr-defined]
    implement.__signature__ = _signature(  # type: ignore[attr-defined]
        input_names, trtp, {"outputs": outcome, "tactic": int}, launched
    )
    trtp.register(f"{DOMAIN}::{name}")(describe)
    trtp.aot_impl(f"{DOMAIN}::{name}")(implement)


def _signature(names: list[str], trtp: Any, more: dict[str, Any], result: Any) -> Signature:
    kinds = {**dict.fromkeys(names, trtp.TensorDesc), "config": str, **more}
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in kinds.items()]
    return Signature(parameters, return_annotation=result)


def _facts(tensor: Any) -> tuple[str, list[int | None]]:
    """Return a tensor's dtype and shape, with None for a size that is not yet known."""
    shape = [None if n.is_fake or not n.is_constant else n.constant_value() for n in tensor.shape_expr]
    name = tensor.dtype.name
    format_ = Format.of_tensorrt(name)
    return name.lower() if format_ is None else format_.label, shape


def _trt_dtype(format_: Format, trt: Any) -> Any:
    return getattr(trt.DataType, format_.tensorrt)
