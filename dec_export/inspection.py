"""Facts about a bundle, and about the shipped recipes, as plain dictionaries."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from dec_export.bundle import Bundle
from dec_export.errors import BundleError
from dec_export.recipe import Recipe, shipped_recipes

_LARGEST = 8


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """The manifest, and what the ONNX file holds: operators, initializers, precision, largest tensors."""
    proto = _load(bundle.onnx_path)
    initializers = [_tensor("weight", t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer]
    names = {t["name"] for t in initializers}
    inner = [_value(value) for value in proto.graph.value_info if value.name not in names]
    largest = sorted([*initializers, *inner], key=lambda t: -int(t["bytes"]))[:_LARGEST]
    return {
        **bundle.manifest.model_dump(mode="json"),
        "path": str(bundle.path),
        "nodes": len(proto.graph.node),
        "operators": dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        "functions": [f"{function.domain}::{function.name}" for function in proto.functions],
        "initializers": {
            "count": len(initializers),
            "bytes": sum(t["bytes"] for t in initializers),
            "dtypes": dict(Counter(t["dtype"] for t in initializers)),
        },
        "largest_tensors": largest,
    }


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
            "coarse_resolution": list(recipe.canonicalizer.coarse_resolution),
        }
        for recipe in recipes
    ]
