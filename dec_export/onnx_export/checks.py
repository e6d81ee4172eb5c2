"""Checks of the properties that every exported ONNX model must have."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from dec_export.errors import ExportError
from dec_export.forms import Solver
from dec_export.onnx_export.operators import DOMAIN, Operator, TensorSpec, check_tensors, read_config

# The label of a tensor's format, and its shape, with None for each size that is not known.
_Facts = tuple[str, "list[int | None]"]
# Control flow has no place in an unrolled solver, and TensorRT has no determinant.
_FORBIDDEN_OPERATORS = ("Loop", "If", "Scan", "Det")


def check_model(proto: onnx.ModelProto, solver: Solver = Solver.UNROLL) -> None:
    """Raise ExportError unless the model is valid, portable, declares a free batch, and has the solver's form."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported model is not valid ONNX: {error}") from error
    _check_domains(proto)
    _check_operators(proto, solver)
    _check_batch(proto)
    check_dec_nodes(proto)


def check_dec_nodes(proto: onnx.ModelProto) -> None:
    """Raise ExportError, which names the node, unless every `dec` operator has valid attributes and inputs.

    Formats and shapes are checked for the inputs of functions and the outputs of other `dec` operators. The outputs of
    standard operators between them are not checked here, but by the runtime.
    """
    functions = {function.name: function for function in proto.functions if function.domain == DOMAIN}
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    known = {value.name: _facts_of_value(value) for value in values}
    known |= {tensor.name: (_dtype_name(tensor.data_type), list(tensor.dims)) for tensor in graph.initializer}
    for node in graph.node:
        if node.domain == DOMAIN:
            _check_call(node, known, functions)


def _check_call(node: onnx.NodeProto, known: Mapping[str, _Facts], functions: Mapping[str, onnx.FunctionProto]) -> None:
    """Check a node that calls one of the functions, and the nodes inside that function."""
    if node.op_type not in functions:
        raise ExportError(f"Node '{node.name}': the model has no function '{DOMAIN}::{node.op_type}'.")
    function = functions[node.op_type]
    if len(node.input) != len(function.input):
        raise ExportError(
            f"Node '{node.name}': '{DOMAIN}::{node.op_type}' takes {len(function.input)} inputs, "
            f"found {len(node.input)}."
        )
    pairs = zip(function.input, node.input, strict=True)
    _check_function(function, {name: known[given] for name, given in pairs if given in known}, functions)


def _check_function(function: onnx.FunctionProto, known: dict[str, _Facts], functions: Collection[str]) -> None:
    for node in function.node:
        if node.domain != DOMAIN:
            continue
        if node.op_type not in functions:
            raise ExportError(f"Node '{node.name}': the model has no function '{DOMAIN}::{node.op_type}'.")
        operator = _operator_of(node)
        specs, results = operator.inputs(), operator.outputs()
        if len(node.input) != len(specs) or len(node.output) != len(results):
            raise ExportError(
                f"Node '{node.name}' ({node.op_type}): expected {len(specs)} inputs and {len(results)} "
                f"outputs, found {len(node.input)} and {len(node.output)}."
            )
        for name, spec in zip(node.input, specs, strict=True):
            if name in known:
                check_tensors(operator, [known[name]], [spec])
        known |= {name: _facts_of_spec(spec) for name, spec in zip(node.output, results, strict=True)}


def _operator_of(node: onnx.NodeProto) -> Operator:
    """Return the operator that a node's `config` describes; raise ExportError if another attribute contradicts it."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if "config" not in attributes:
        raise ExportError(f"Node '{node.name}' ({node.op_type}): its attribute 'config' is missing.")
    operator = read_config(node.op_type, attributes["config"].s.decode("utf-8", "replace"))
    for expected in operator.node(node.input, node.output).attribute:
        found = attributes.get(expected.name)
        if found is None or _value(found) != _value(expected):
            given = "missing" if found is None else _value(found)
            raise ExportError(
                f"Node '{node.name}' ({node.op_type}): its attribute '{expected.name}' must be "
                f"{_value(expected)}, found {given}: build the ONNX file again."
            )
    return operator


def _value(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _facts_of_spec(spec: TensorSpec) -> _Facts:
    return spec.format.label, list(spec.shape)


def _facts_of_value(value: onnx.ValueInfoProto) -> _Facts:
    tensor = value.type.tensor_type
    shape = [n.dim_value if n.HasField("dim_value") else None for n in tensor.shape.dim]
    return _dtype_name(tensor.elem_type), shape


def _dtype_name(element_type: int) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(element_type).name


def _check_domains(proto: onnx.ModelProto) -> None:
    foreign = sorted({opset.domain for opset in proto.opset_import} - {"", "ai.onnx", DOMAIN})
    if foreign:
        raise ExportError(
            f"The exported model has operators of {', '.join(foreign)}, expected standard ONNX, which is portable."
        )


def _check_operators(proto: onnx.ModelProto, solver: Solver) -> None:
    if bool(proto.functions) != (solver is Solver.PLUGIN):
        found = f"{len(proto.functions)} functions" if proto.functions else "no functions"
        raise ExportError(f"The model has {found}, which is not the form of --solver {solver}.")
    forbidden = [name for name in _FORBIDDEN_OPERATORS if name != "Loop" or solver is not Solver.LOOP]
    for node in proto.graph.node:
        if node.op_type in forbidden:
            raise ExportError(f"The {solver} form must not hold a {node.op_type}, found the node '{node.name}'.")
        if any(attribute.name == "antialias" and attribute.i for attribute in node.attribute):
            raise ExportError(f"The node '{node.name}' is an antialiased Resize, which TensorRT does not have.")


def _check_batch(proto: onnx.ModelProto) -> None:
    """Check that the first dimension of every input and output is one free symbol, and all others are numbers."""
    symbols = set()
    for value in [*proto.graph.input, *proto.graph.output]:
        dimensions = value.type.tensor_type.shape.dim
        symbols.add(dimensions[0].dim_param)
        if not all(dimension.HasField("dim_value") for dimension in dimensions[1:]):
            raise ExportError(f"'{value.name}' has a free dimension beside its batch.")
    if len(symbols) != 1 or "" in symbols:
        raise ExportError(
            "The exported model's inputs and outputs must share one free batch dimension, found a fixed one."
        )
