"""Facts about a bundle, and about the shipped recipes, as plain dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from pydantic import TypeAdapter, ValidationError

from dec_export.bundle.store import Bundle
from dec_export.engines.tensorrt.layers import EngineContents, EngineTensor
from dec_export.engines.tensorrt.plan import PlanEntry
from dec_export.errors import BundleError
from dec_export.onnx_export.operators import operators_in
from dec_export.recipe.model import Recipe
from dec_export.recipe.shipped import shipped_recipes

_LARGEST = 8
_CONTENTS = TypeAdapter(EngineContents)
_MAX_LAYERS_BYTES = 64 << 20
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """The manifest, and what the ONNX file holds: operators, initializers, precision, largest tensors."""
    proto = _load(bundle.onnx_path)
    nodes = list(_nodes(proto.graph))
    initializers = [_tensor("weight", t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer]
    names = {t["name"] for t in initializers}
    inner = [_value(value) for value in proto.graph.value_info if value.name not in names]
    largest = sorted([*initializers, *inner], key=lambda t: -int(t["bytes"]))[:_LARGEST]
    return {
        **bundle.manifest.model_dump(mode="json"),
        "path": str(bundle.path),
        "nodes": len(nodes),
        "operators": dict(Counter(node.op_type for node in nodes).most_common()),
        "functions": [f"{function.domain}::{function.name}" for function in proto.functions],
        "dec_operators": dict(Counter(operator.op_type for operator in operators_in(proto)).most_common()),
        "initializers": {
            "count": len(initializers),
            "bytes": sum(t["bytes"] for t in initializers),
            "dtypes": dict(Counter(t["dtype"] for t in initializers)),
        },
        "largest_tensors": largest,
        "engine_layers": {name: _engine_layers(bundle, entry) for name, entry in bundle.manifest.plans.items()},
    }


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _engine_layers(bundle: Bundle, entry: PlanEntry) -> dict[str, Any]:
    """What a TensorRT engine holds, as it was read back when it was built: layers by type, and its largest tensors."""
    path = bundle.path / entry.layers_file
    if path.stat().st_size > _MAX_LAYERS_BYTES:
        raise BundleError(f"'{path}' is larger than {_MAX_LAYERS_BYTES} bytes: that is no list of an engine's layers.")
    try:
        contents = _CONTENTS.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise BundleError(f"'{path}' is not a list of an engine's layers ({first}): build the bundle again.") from error
    tensors = [
        _engine_tensor(layer.name, kind, tensor)
        for layer in contents.layers
        for kind, held in (("constant", layer.constants), ("output", layer.outputs))
        for tensor in held
    ]
    return {
        **entry.layers.model_dump(),
        "bindings": [binding.as_dict() for binding in contents.bindings],
        "largest_tensors": sorted(tensors, key=lambda t: -int(t["bytes"]))[:_LARGEST],
    }


def _engine_tensor(layer: str, kind: str, tensor: EngineTensor) -> dict[str, Any]:
    """Sizes are of one sample: what depends on the batch (-1) counts once."""
    count = prod(n for n in tensor.shape if n > 0)
    size = count * _ITEM_BYTES.get(tensor.dtype, 4)
    return {"layer": layer, "kind": kind, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": size}


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise BundleError(f"'{path}' is not an ONNX model ({error}): build the bundle again.") from error


def _tensor(kind: str, name: str, element_type: int, shape: list[int | str]) -> dict[str, Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    # A symbolic dimension is the batch; sizes are given for one sample.
    size = prod(d for d in shape if isinstance(d, int)) * dtype.itemsize
    return {"name": name, "kind": kind, "dtype": dtype.name, "shape": shape, "bytes": size}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim]
    return _tensor("activation", value.name, tensor.elem_type, shape)


def list_backbones() -> list[dict[str, Any]]:
    """Every shipped recipe, in short."""
    recipes = [Recipe.named(name) for name in shipped_recipes()]
    return [
        {
            "name": recipe.name,
            "task": recipe.task,
            "timm": recipe.backbone.timm,
            "family": recipe.backbone.family,
            "image_size": recipe.backbone.image_size,
            "coarse_resolution": list(recipe.canonicalizer.coarse_resolution) if recipe.canonicalizer else [],
        }
        for recipe in recipes
    ]
