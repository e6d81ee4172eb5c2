"""The operators of domain `dec`: what each takes and gives, and how a node of an ONNX graph says so.

One solve of a canonicalizer is a chain of them, f standing for the first four:

    phi -> Warp -> Convolve -> Activate -> Convolve -> Score -> f(phi) -> Mix -> phi ...  and Keep beside Mix

Each stands for one kernel of a TensorRT plugin, and has a body in standard ONNX (`functions.py`) for every other
runtime. A node tells the plugin everything in one attribute, `config`: JSON of the fields of a class below, the node's
name among them, so that an error can name it. Attributes that the body needs stand beside it.

The version is part of an operator's name, because the plugin interface knows no other version than 1. The sizes of a
pooling are part of it, too: a function's body may take them from the node's attributes, but TensorRT's parser then does
not find them (1.7 for RTX; it does find other attributes), so the body has to hold the numbers.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import onnx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dec_export.errors import ExportError

DOMAIN = "dec"
_MAX_CONFIG_CHARS = 4096

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
StorageType = Literal["float32", "float16"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a node. shape: None stands for the batch, which is always the first dimension."""

    name: str
    dtype: StorageType
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('batch' if n is None else str(n) for n in self.shape)})"


def _batched(name: str, *shape: int, dtype: StorageType = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, (None, *shape))


def _constant(name: str, *shape: int, dtype: StorageType = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _check_padding(padding: int, height: int, width: int) -> None:
    if padding >= min(height, width):
        raise ValueError(f"a map of {height} x {width} cannot be reflected by {padding}")


class Operator(BaseModel, ABC):
    """A node of domain `dec`. name: the node's, unique in its solve."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    OP_TYPE: ClassVar[str]

    name: Annotated[str, Field(min_length=1, max_length=256)]

    @property
    def op_type(self) -> str:
        """The node's operator, by which its body and its plugin are found."""
        return self.OP_TYPE

    @classmethod
    def tensor_names(cls) -> tuple[list[str], list[str]]:
        """The names of the inputs and of the outputs, which are the same for every node of this kind."""
        fields: dict[str, Any] = dict.fromkeys(cls.model_fields, 4)
        some = cls.model_construct(**fields | {"name": "any", "dtype": "float32"})
        return [spec.name for spec in some.inputs()], [spec.name for spec in some.outputs()]

    @abstractmethod
    def inputs(self) -> list[TensorSpec]:
        """The node's inputs, in order."""

    @abstractmethod
    def outputs(self) -> list[TensorSpec]:
        """The node's outputs, in order."""

    def body_attributes(self) -> dict[str, Any]:
        """The attributes that the function's body reads."""
        return {}

    def config(self) -> str:
        """The fields as JSON, on one line."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), sort_keys=True)

    def node(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
        """The ONNX node. TensorRT takes it for a plugin's when one of that name is registered, else for its body."""
        return onnx.helper.make_node(
            self.op_type,
            inputs,
            outputs,
            name=self.name,
            domain=DOMAIN,
            plugin_namespace=DOMAIN,
            plugin_version="1",
            aot=1,
            config=self.config(),
            **self.body_attributes(),
        )


class WarpV1(Operator):
    """The canonicalizer's input, sampled along the warp of phi, with its border reflected for a convolution.

    image (B, C, H, W) and phi (B, 2, R, R-1), x before y -> warped (B, C, H + 2 p, W + 2 p). The matrices are those of
    `lowering.warp`: even columns of accumulate_x are for x coordinates, odd ones of spread_y for y coordinates.
    """

    OP_TYPE: ClassVar[str] = "WarpV1"

    channels: Count
    height: Count
    width: Count
    padding: Annotated[int, Field(strict=True, ge=0, le=127)]
    resolution: Annotated[int, Field(strict=True, ge=4, le=64)]
    dtype: StorageType

    @model_validator(mode="after")
    def _check(self) -> WarpV1:
        _check_padding(self.padding, self.height, self.width)
        return self

    def inputs(self) -> list[TensorSpec]:
        rows, columns = self.height + 2 * self.padding, self.width + 2 * self.padding
        r = self.resolution
        return [
            _batched("image", self.channels, self.height, self.width),
            _batched("phi", 2, r, r - 1),
            _constant("blur_rows", r, r),
            _constant("blur_steps", r - 1, r - 1),
            _constant("spread_x", rows, r),
            _constant("accumulate_x", r - 1, 2 * columns),
            _constant("accumulate_y", rows, r - 1),
            _constant("spread_y", r, 2 * columns),
        ]

    def outputs(self) -> list[TensorSpec]:
        rows, columns = self.height + 2 * self.padding, self.width + 2 * self.padding
        return [_batched("warped", self.channels, rows, columns, dtype=self.dtype)]

    def body_attributes(self) -> dict[str, Any]:
        return {
            "limit_x": (self.width - 1) / self.width,
            "limit_y": (self.height - 1) / self.height,
            "grid": [-1, self.height + 2 * self.padding, self.width + 2 * self.padding, 2],
        }


class ConvolveV1(Operator):
    """A convolution without padding, of which only the largest value of each window and the moments are kept.

    padded (B, c, h + k - 1, w + k - 1) and weight (C, c, k, k) -> peak (B, C, h / p, w / p), the maxima over windows of
    p x p pixels, and moments (B, C, T, 2), mean and variance of each band of p rows of the map (the last may have
    fewer), before pooling.
    """

    OP_TYPE: ClassVar[str] = "ConvolveV1"
    PATTERN: ClassVar[re.Pattern[str]] = re.compile(r"Convolve\d+x\d+Pool\d+V1")

    channels_in: Count
    channels_out: Count
    height: Count
    width: Count
    kernel: Annotated[int, Field(strict=True, ge=1, le=255)]
    pool: Annotated[int, Field(strict=True, ge=1, le=255)]
    dtype: StorageType

    @model_validator(mode="after")
    def _check(self) -> ConvolveV1:
        if self.pool > min(self.height, self.width):
            raise ValueError(f"a map of {self.height} x {self.width} has no window of {self.pool} x {self.pool}")
        return self

    @property
    def op_type(self) -> str:
        return f"Convolve{self.height}x{self.width}Pool{self.pool}V1"

    @property
    def bands(self) -> int:
        """T, the number of bands."""
        return -(-self.height // self.pool)

    def inputs(self) -> list[TensorSpec]:
        margin = self.kernel - 1
        padded = (self.channels_in, self.height + margin, self.width + margin)
        return [
            _batched("padded", *padded, dtype=self.dtype),
            _constant("weight", self.channels_out, self.channels_in, self.kernel, self.kernel, dtype=self.dtype),
        ]

    def outputs(self) -> list[TensorSpec]:
        return [
            _batched("peak", self.channels_out, self.height // self.pool, self.width // self.pool, dtype=self.dtype),
            _batched("moments", self.channels_out, self.bands, 2),
        ]


class _Normalised(Operator):
    """What Activate and Score share: InstanceNorm, from moments, and Softplus less an offset, of a pooled map."""

    channels: Count
    height: Count
    width: Count
    bands: Count
    offset: Annotated[float, Field(ge=0, le=80)]
    eps: Annotated[float, Field(gt=0)]
    dtype: StorageType

    def inputs(self) -> list[TensorSpec]:
        return [
            _batched("peak", self.channels, self.height, self.width, dtype=self.dtype),
            _batched("moments", self.channels, self.bands, 2),
            _constant("shares", self.bands, 1),
            _constant("scale", self.channels, 1, 1),
            _constant("shift", self.channels, 1, 1),
        ]

    def body_attributes(self) -> dict[str, Any]:
        return {"offset": self.offset, "eps": self.eps}


class ActivateV1(_Normalised):
    """softplus(norm(peak)) - offset, with its border reflected: (B, C, h, w) -> padded (B, C, h + 2 p, w + 2 p).

    moments (B, C, T, 2) are those of ConvolveV1, shares (T, 1) how much of the map each band is.
    """

    OP_TYPE: ClassVar[str] = "ActivateV1"

    padding: Annotated[int, Field(strict=True, ge=0, le=127)]

    @model_validator(mode="after")
    def _check(self) -> ActivateV1:
        _check_padding(self.padding, self.height, self.width)
        return self

    def outputs(self) -> list[TensorSpec]:
        rows, columns = self.height + 2 * self.padding, self.width + 2 * self.padding
        return [_batched("padded", self.channels, rows, columns, dtype=self.dtype)]

    def body_attributes(self) -> dict[str, Any]:
        pads = [0, 0, self.padding, self.padding] * 2
        return {**super().body_attributes(), "pads": pads}


class ScoreV1(_Normalised):
    """The last block's activation and the head: peak (B, C, h, w) -> phi (B, 2, R, R-1), x before y.

    weight (2, C, 1, 1); pool_rows (R, h) and pool_columns (w, R) are the adaptive pooling.
    """

    OP_TYPE: ClassVar[str] = "ScoreV1"

    resolution: Annotated[int, Field(strict=True, ge=4, le=64)]

    def inputs(self) -> list[TensorSpec]:
        r = self.resolution
        return [
            *super().inputs(),
            _constant("weight", 2, self.channels, 1, 1),
            _constant("head_scale", 2, 1, 1),
            _constant("head_shift", 2, 1, 1),
            _constant("pool_rows", r, self.height),
            _constant("pool_columns", self.width, r),
        ]

    def outputs(self) -> list[TensorSpec]:
        return [_batched("phi", 2, self.resolution, self.resolution - 1)]


class _Point(Operator):
    resolution: Annotated[int, Field(strict=True, ge=4, le=64)]

    def _point(self, name: str, *before: int) -> TensorSpec:
        return _batched(name, *before, 2, self.resolution, self.resolution - 1)


class MixV1(_Point):
    """One step of Anderson's acceleration: remember iterate and image = f(iterate), and mix what is remembered.

    iterates, images (B, m, 2, R, R-1), newest last, of which `count` are in use after this step -> the next iterate
    (B, 2, R, R-1), and the memory with the new pair in place of the oldest.
    """

    OP_TYPE: ClassVar[str] = "MixV1"

    memory: Annotated[int, Field(strict=True, ge=1, le=16)]
    count: Annotated[int, Field(strict=True, ge=1, le=16)]
    regularisation: Annotated[float, Field(gt=0)]
    damping: float

    @model_validator(mode="after")
    def _check(self) -> MixV1:
        if self.count > self.memory:
            raise ValueError(f"a memory of {self.memory} cannot have {self.count} pairs in use")
        return self

    def inputs(self) -> list[TensorSpec]:
        return [
            self._point("iterates", self.memory),
            self._point("images", self.memory),
            self._point("iterate"),
            self._point("image"),
        ]

    def outputs(self) -> list[TensorSpec]:
        return [
            self._point("mixed"),
            self._point("new_iterates", self.memory),
            self._point("new_images", self.memory),
        ]

    def body_attributes(self) -> dict[str, Any]:
        return {"unused": self.memory - self.count, "regularisation": self.regularisation, "damping": self.damping}


class KeepV1(_Point):
    """Keep the image of the iterate with the smallest residual, || image - iterate ||^2, of each sample.

    smallest (B, 1, 1, 1) is the residual of `best`.
    """

    OP_TYPE: ClassVar[str] = "KeepV1"

    def inputs(self) -> list[TensorSpec]:
        return [self._point("iterate"), self._point("image"), self._point("best"), _batched("smallest", 1, 1, 1)]

    def outputs(self) -> list[TensorSpec]:
        return [self._point("new_best"), _batched("new_smallest", 1, 1, 1)]


_KINDS: dict[str, type[Operator]] = {
    operator.OP_TYPE: operator for operator in (WarpV1, ActivateV1, ScoreV1, MixV1, KeepV1)
}


def kind_of(op_type: str) -> type[Operator] | None:
    """The class of an operator by its name in a graph; None for what is no operator, such as a whole solve."""
    return ConvolveV1 if ConvolveV1.PATTERN.fullmatch(op_type) else _KINDS.get(op_type)


def read_config(op_type: str, config: str) -> Operator:
    """The operator that a node's `config` describes; ExportError, naming the node where it can, when it is none."""
    text = config.rstrip("\0")
    name, kind = _name_in(text), kind_of(op_type)
    if kind is None:
        raise ExportError(f"Node '{name}': '{op_type}' is no operator of this version of dec-export.")
    try:
        operator = kind.model_validate_json(text[: _MAX_CONFIG_CHARS + 1])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        raise ExportError(
            f"Node '{name}' ({op_type}): its attribute 'config' is wrong at '{where}' ({first['msg']}): "
            "build the ONNX file again."
        ) from error
    if operator.op_type != op_type:
        raise ExportError(f"Node '{name}' ({op_type}): its attribute 'config' is of {operator.op_type}.")
    return operator


def operators_in(proto: onnx.ModelProto) -> list[Operator]:
    """The operators of a model, in its functions and in its graph; ExportError for one that cannot be read."""
    found = []
    for node in (node for body in (*proto.functions, proto.graph) for node in body.node):
        if node.domain == DOMAIN and kind_of(node.op_type):
            configs = [attribute.s for attribute in node.attribute if attribute.name == "config"]
            found.append(read_config(node.op_type, b"".join(configs).decode("utf-8", "replace")))
    return found


def _name_in(text: str) -> str:
    try:
        return str(json.loads(text[:_MAX_CONFIG_CHARS])["name"])
    except (ValueError, KeyError, TypeError):
        return "without a name"


def check_tensors(
    operator: Operator, tensors: Sequence[tuple[str, Sequence[int | None]]], specs: Sequence[TensorSpec]
) -> None:
    """Compare dtypes and shapes (None where not known) with what the operator wants; ExportError names the node."""
    where = f"Node '{operator.name}' ({operator.op_type})"
    if len(tensors) != len(specs):
        raise ExportError(f"{where}: expected {len(specs)} tensors, found {len(tensors)}: build the ONNX file again.")
    for (dtype, shape), spec in zip(tensors, specs, strict=True):
        known = len(shape) == len(spec.shape) and all(
            n is None or wanted is None or n == wanted for n, wanted in zip(shape, spec.shape, strict=True)
        )
        if dtype != spec.dtype or not known:
            found = TensorSpec(spec.name, dtype, tuple(shape))  # type: ignore[arg-type]
            raise ExportError(f"{where}: '{spec.name}' must be {spec}, found {found}: build the ONNX file again.")
