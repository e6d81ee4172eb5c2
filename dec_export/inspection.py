"""Facts about a bundle, and about the shipped recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal  # values of JSON

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dec_export.bundle.manifest import Manifest
from dec_export.bundle.plans import LayerCounts, PlanEntry, PlanName
from dec_export.bundle.store import Bundle
from dec_export.engines.tensorrt.layers import Binding, EngineContents, EngineTensor, Layer
from dec_export.errors import BundleError
from dec_export.formats import Format
from dec_export.onnx_export.operators import operators_in
from dec_export.recipe.model import Recipe
from dec_export.recipe.shipped import shipped_recipes

_LARGEST = 8
_CONTENTS = TypeAdapter(EngineContents)
_MAX_LAYERS_BYTES = 64 << 20


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True)


class GraphTensor(_Fact):
    """A tensor of the ONNX graph. `shape` holds symbols, and `bytes` is the size for one sample."""

    name: str
    kind: Literal["weight", "activation"]
    dtype: str
    shape: tuple[int | str, ...]
    bytes: int


class Initializers(_Fact):
    """The number and the bytes of weights and constants in the ONNX file, and their number by dtype."""

    count: int
    bytes: int
    dtypes: dict[str, int]


class HeldTensor(_Fact):
    """A tensor inside a TensorRT engine. -1 in `shape` is the batch, and `bytes` is the size for one sample."""

    layer: str
    kind: Literal["constant", "output"]
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class EngineLayers(LayerCounts):
    """The content of a TensorRT engine, which was read back when the engine was built."""

    bindings: tuple[Binding, ...]
    largest_tensors: tuple[HeldTensor, ...]


class Inspection(_Fact):
    """The facts about a bundle that `dec-export inspect` shows.

    operators: the number of nodes of each type, including nodes in loops. functions: the functions of the ONNX file.
    dec_operators: the number of nodes of each operator of the domain `dec` in the solves.
    """

    manifest: Manifest
    path: str
    nodes: int
    operators: dict[str, int]
    functions: tuple[str, ...]
    dec_operators: dict[str, int]
    initializers: Initializers
    largest_tensors: tuple[GraphTensor, ...]
    engine_layers: dict[PlanName, EngineLayers]

    def dump(self) -> dict[str, Any]:
        """Return the output of `inspect --json`: the fields of the manifest, and beside them all others."""
        return {**self.manifest.dump(), **self.model_dump(mode="json", exclude={"manifest"})}


class ShippedRecipe(_Fact):
    """The main facts of a shipped recipe."""

    name: str
    task: str
    timm: str
    family: str
    image_size: int
    coarse_resolution: tuple[int, ...]


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Return the manifest and the contents of the ONNX file and of the engines.

    Raises BundleError when one of them cannot be read.
    """
    proto = _load(bundle.onnx_path)
    nodes = list(_nodes(proto.graph))
    weights = [_tensor("weight", t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer]
    names = {tensor.name for tensor in weights}
    inner = [_value(value) for value in proto.graph.value_info if value.name not in names]
    return Inspection(
        manifest=bundle.manifest,
        path=str(bundle.path),
        nodes=len(nodes),
        operators=_counts(node.op_type for node in nodes),
        functions=tuple(f"{function.domain}::{function.name}" for function in proto.functions),
        dec_operators=_counts(operator.op_type for operator in operators_in(proto)),
        initializers=Initializers(
            count=len(weights),
            bytes=sum(tensor.bytes for tensor in weights),
            dtypes=dict(Counter(tensor.dtype for tensor in weights)),
        ),
        largest_tensors=tuple(sorted([*weights, *inner], key=lambda tensor: -tensor.bytes)[:_LARGEST]),
        engine_layers={name: _engine_layers(bundle, entry) for name, entry in bundle.manifest.plans.items()},
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Count how often each name occurs; the most frequent name comes first."""
    return dict(Counter(names).most_common())


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, including the nodes in loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _engine_layers(bundle: Bundle, entry: PlanEntry) -> EngineLayers:
    path = bundle.path / entry.layers_file
    if path.stat().st_size > _MAX_LAYERS_BYTES:
        raise BundleError(
            f"'{path}' has more than {_MAX_LAYERS_BYTES} bytes, too many for a list of an engine's layers: build the "
            "bundle again."
        )
    try:
        contents = _CONTENTS.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise BundleError(f"'{path}' is not a list of an engine's layers ({first}): build the bundle again.") from error
    tensors = [tensor for layer in contents.layers for tensor in _held(layer)]
    return EngineLayers(
        count=entry.layers.count,
        by_dtype=entry.layers.by_dtype,
        by_type=entry.layers.by_type,
        bindings=contents.bindings,
        largest_tensors=tuple(sorted(tensors, key=lambda tensor: -tensor.bytes)[:_LARGEST]),
    )


def _held(layer: Layer) -> Iterator[HeldTensor]:
    """Yield the constants and outputs of one layer."""
    for tensor in layer.constants:
        yield _held_tensor(layer.name, "constant", tensor)
    for tensor in layer.outputs:
        yield _held_tensor(layer.name, "output", tensor)


def _held_tensor(layer: str, kind: Literal["constant", "output"], tensor: EngineTensor) -> HeldTensor:
    size = prod(n for n in tensor.shape if n > 0) * _item_size(tensor.dtype)
    return HeldTensor(layer=layer, kind=kind, dtype=tensor.dtype, shape=tensor.shape, bytes=size)


def _item_size(dtype: str) -> int:
    """Return the bytes of one number of a dtype in a list of layers; an unknown dtype counts as 32 bits."""
    try:
        return Format.of_label(dtype).size
    except KeyError:
        pass
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return Format.FP32.size


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise BundleError(f"'{path}' is not an ONNX model ({error}): build the bundle again.") from error


def _tensor(
    kind: Literal["weight", "activation"], name: str, element_type: int, shape: Sequence[int | str]
) -> GraphTensor:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    # A symbolic dimension is the batch, which counts as 1, because sizes are those of one sample.
    size = prod(d for d in shape if isinstance(d, int)) * dtype.itemsize
    return GraphTensor(name=name, kind=kind, dtype=dtype.name, shape=tuple(shape), bytes=size)


def _value(value: onnx.ValueInfoProto) -> GraphTensor:
    tensor = value.type.tensor_type
    shape = [dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim]
    return _tensor("activation", value.name, tensor.elem_type, shape)


def list_backbones() -> tuple[ShippedRecipe, ...]:
    """Return the main facts of every shipped recipe."""
    return tuple(map(_shipped, shipped_recipes()))


def _shipped(name: str) -> ShippedRecipe:
    recipe = Recipe.named(name)
    return ShippedRecipe(
        name=recipe.name,
        task=recipe.task,
        timm=recipe.backbone.timm,
        family=recipe.backbone.family,
        image_size=recipe.image_size,
        coarse_resolution=recipe.coarse_resolutions,
    )
