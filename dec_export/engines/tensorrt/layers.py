"""The layers, inputs and outputs of a built engine, which are read back from TensorRT.

TensorRT gives them in two ways: as text in the log of the build (TensorRT for RTX, even without a GPU), and as JSON
from the inspector of a deserialised engine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any  # TensorRT ships no types, and neither has JSON

import onnx

from dec_export.errors import EngineError, PrecisionError
from dec_export.formats import Format

# These types of TensorRT are not number formats in which a part of a model can compute.
_OTHER_TYPES = ("int64", "int32", "uint8", "bool")
_MATRIX_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor inside an engine. -1 in the shape is the batch."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One kernel or group of kernels. onnx_nodes: the names of the ONNX nodes that it computes in whole or in part."""

    name: str
    type: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    onnx_nodes: tuple[str, ...]

    @property
    def dtypes(self) -> set[str]:
        return {tensor.dtype for tensor in (*self.inputs, *self.constants, *self.outputs)}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Binding:
    """An input or output of an engine. profile: the smallest, the most frequent and the largest shape of an input."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EngineContents:
    """The layers of an engine, and its inputs and outputs."""

    layers: tuple[Layer, ...]
    bindings: tuple[Binding, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"layers": [x.as_dict() for x in self.layers], "bindings": [x.as_dict() for x in self.bindings]}


_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], (?P<rest>Tactic.*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: ([\w ]+)")
_BINDING = re.compile(
    r"^ ?Name: (?P<name>.*?), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+), Dimensions: \[(?P<shape>[-\d,]*)\],"
    r"(?P<rest>.*)$",
    re.MULTILINE,
)
_PROFILE = re.compile(r"MinShape: \[([\d,]+)\], OptShape: \[([\d,]+)\], MaxShape: \[([\d,]+)\]")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def is_contents(message: str) -> bool:
    """Return whether a message of TensorRT's log lists an engine's layers."""
    return "LayerType: " in message and "I/O Tensors:" in message


def contents_from_log(message: str) -> EngineContents:
    """Read the log message that lists an engine's layers. Raises EngineError when it lists none."""
    layers = [
        Layer(
            found["name"],
            found["type"],
            _tensors(found["inputs"]),
            _tensors(found["constants"] or ""),
            _tensors(found["outputs"]),
            tuple(_ONNX_NODE.findall(found["rest"])),
        )
        for found in _LAYER.finditer(message)
    ]
    return _not_empty(EngineContents(tuple(layers), tuple(map(_binding, _BINDING.finditer(message)))))


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(EngineTensor(_dtype(dtype), _shape(shape)) for shape, dtype in _TENSOR.findall(text))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _dtype(text: str) -> str:
    """Return the label of a format, or a type's name in lower case."""
    lower = text.strip().lower()
    other = next((name for name in _OTHER_TYPES if name in lower), None)
    if other is not None:
        return other
    format_ = Format.in_text(lower)
    return lower if format_ is None else format_.label


def _binding(found: re.Match[str]) -> Binding:
    profile = _PROFILE.search(found["rest"])
    return Binding(
        found["name"],
        found["mode"] == "Input",
        _dtype(found["dtype"]),
        _shape(found["shape"]),
        tuple(map(_shape, profile.groups())) if profile else None,
    )


def contents_from_engine(engine: Any, trt: Any) -> EngineContents:
    """Read the layers from a deserialised engine. Raises EngineError when it lists none."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = [_layer(layer) for layer in json.loads(text).get("Layers", []) if isinstance(layer, dict)]
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return _not_empty(EngineContents(tuple(layers), tuple(_engine_binding(engine, name, trt) for name in names)))


def _layer(layer: Mapping[str, Any]) -> Layer:
    def tensors(key: str) -> tuple[EngineTensor, ...]:
        return tuple(
            EngineTensor(_dtype(str(t.get("Format/Datatype", t.get("Datatype", "")))), tuple(t.get("Dimensions", ())))
            for t in layer.get(key, ())
        )

    return Layer(
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "")),
        tensors("Inputs"),
        tensors("Constants"),
        tensors("Outputs"),
        tuple(_ONNX_NODE.findall(str(layer.get("Metadata", "")))),
    )


def _engine_binding(engine: Any, name: str, trt: Any) -> Binding:
    is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    profile = tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)) if is_input else None
    dtype = _dtype(str(engine.get_tensor_dtype(name)))
    return Binding(name, is_input, dtype, tuple(engine.get_tensor_shape(name)), profile)


def _not_empty(contents: EngineContents) -> EngineContents:
    if not contents.layers or not contents.bindings:
        raise PrecisionError(
            "TensorRT lists no layers of the engine, so its precision cannot be checked: nothing was kept."
        )
    return contents


def check_precision(contents: EngineContents, proto: onnx.ModelProto, *, complete: bool) -> dict[str, dict[str, int]]:
    """Compare the format of every matrix product of the graph with that of the engine's layer.

    Returns, for each format, the number of products in the graph and the number found in the engine's layers; a layer
    at a boundary shows both formats. With `complete`, every product must be found; otherwise one of each format is
    enough, because TensorRT does not always name all nodes of a fused layer. Raises PrecisionError when a product runs
    in another format, or cannot be found.
    """
    by_node: dict[str, set[str]] = {}
    for layer in contents.layers:
        for name in layer.onnx_nodes:
            by_node.setdefault(name, set()).update(layer.dtypes)
    counts: dict[str, dict[str, int]] = {}
    for name, dtype in _matrix_products(proto).items():
        count = counts.setdefault(dtype, {"graph": 0, "found": 0})
        count["graph"] += 1
        if name in by_node:
            count["found"] += 1
            if dtype not in by_node[name]:
                raise PrecisionError(
                    f"The graph computes '{name}' in {dtype}, but the engine computes it in "
                    f"{' and '.join(sorted(by_node[name]))}: nothing was kept."
                )
    for dtype, count in counts.items():
        if count["found"] < (count["graph"] if complete else 1):
            raise PrecisionError(
                f"Expected the graph's {count['graph']} matrix products in {dtype} in the engine's layers, found "
                f"{count['found']}, so its precision cannot be checked: nothing was kept."
            )
    return counts


def _matrix_products(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the format of every matrix product, including those in loops, by the name of its node."""
    return _products_of(proto.graph, {})


def _products_of(graph: onnx.GraphProto, outer: Mapping[str, int]) -> dict[str, str]:
    types = {**outer, **{v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    products = {node.name: _label(types[node.input[0]]) for node in graph.node if node.op_type in _MATRIX_OPERATORS}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                products |= _products_of(attribute.g, types)
    return products


def _label(element_type: int) -> str:
    """Return the label of the format of an ONNX tensor."""
    format_ = Format.of_onnx(element_type)
    return "another type" if format_ is None else format_.label


def check_bindings(contents: EngineContents, proto: onnx.ModelProto, batch: Iterable[int]) -> None:
    """Raise EngineError unless the engine's inputs, outputs and profile are those of the graph and of `batch`."""
    found = {b.name: b for b in contents.bindings}
    declared = {v.name: v for v in [*proto.graph.input, *proto.graph.output]}
    if set(found) != set(declared):
        raise EngineError(
            f"The engine has the tensors {', '.join(found)}, expected those of the ONNX model, {', '.join(declared)}."
        )
    inputs = {value.name for value in proto.graph.input}
    for name, value in declared.items():
        binding, tensor = found[name], value.type.tensor_type
        shape = (-1, *(dimension.dim_value for dimension in tensor.shape.dim[1:]))
        dtype = _label(tensor.elem_type)
        profile = tuple((n, *shape[1:]) for n in batch)
        # An engine for a single batch size has no free dimension.
        fixed = (profile[0][0], *shape[1:]) if len(set(profile)) == 1 else shape
        if binding.dtype != dtype or binding.shape not in (shape, fixed) or binding.is_input != (name in inputs):
            raise EngineError(
                f"The engine's '{name}' is {binding.dtype} {binding.shape}, the ONNX model's is {dtype} {shape}."
            )
        if binding.is_input and binding.profile is not None and binding.profile != profile:
            raise EngineError(f"The engine's '{name}' has the profile {binding.profile}, expected {profile}.")


def summary(contents: EngineContents) -> dict[str, Any]:
    """Count the layers of an engine, by type and by format."""
    by_dtype = Counter("+".join(sorted(layer.dtypes)) or "none" for layer in contents.layers)
    by_type = Counter(layer.type for layer in contents.layers)
    return {
        "count": len(contents.layers),
        "by_dtype": dict(by_dtype.most_common()),
        "by_type": dict(by_type.most_common()),
    }
