"""The six operators, with one class for each."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from dec_export.formats import Format
from dec_export.onnx_export.operators.base import Attributes, Count, Operator, StorageFormat
from dec_export.onnx_export.operators.tensors import TensorSpec, batched, constant
from dec_export.reference.warp import SOFTMAX_SHARPNESS


def _check_padding(padding: int, height: int, width: int) -> None:
    if padding >= min(height, width):
        raise ValueError(f"a map of {height} x {width} cannot be reflected by {padding}")


class WarpV1(Operator):
    """The warp of the canonicalizer's input by phi, reflected at its border for a convolution.

    image (B, C, H, W) and phi (B, 2, R, R-1), x before y -> warped (B, C, H + 2 p, W + 2 p). The matrices are those of
    `lowering.warp`: the even columns of accumulate_x give x coordinates, the odd columns of spread_y y coordinates.
    """

    OP_TYPE: ClassVar[str] = "WarpV1"
    SHARPNESS: ClassVar[float] = SOFTMAX_SHARPNESS

    channels: Count
    height: Count
    width: Count
    padding: Annotated[int, Field(strict=True, ge=0, le=127)]
    resolution: Annotated[int, Field(strict=True, ge=4, le=64)]
    dtype: StorageFormat

    @model_validator(mode="after")
    def _check(self) -> WarpV1:
        _check_padding(self.padding, self.height, self.width)
        return self

    @property
    def storage(self) -> Format:
        return self.dtype

    def inputs(self) -> list[TensorSpec]:
        rows, columns = self.height + 2 * self.padding, self.width + 2 * self.padding
        r = self.resolution
        return [
            batched("image", self.channels, self.height, self.width),
            batched("phi", 2, r, r - 1),
            constant("blur_rows", r, r),
            constant("blur_steps", r - 1, r - 1),
            constant("spread_x", rows, r),
            constant("accumulate_x", r - 1, 2 * columns),
            constant("accumulate_y", rows, r - 1),
            constant("spread_y", r, 2 * columns),
        ]

    def outputs(self) -> list[TensorSpec]:
        rows, columns = self.height + 2 * self.padding, self.width + 2 * self.padding
        return [batched("warped", self.channels, rows, columns, dtype=self.dtype)]

    def body_attributes(self) -> Attributes:
        return {
            "limit_x": (self.width - 1) / self.width,
            "limit_y": (self.height - 1) / self.height,
            "grid": [-1, self.height + 2 * self.padding, self.width + 2 * self.padding, 2],
        }


class ConvolveV1(Operator):
    """A convolution without padding, of whose result only the maximum of each window and the moments are kept.

    padded (B, c, h + k - 1, w + k - 1) and weight (C, c, k, k) -> peak (B, C, h / p, w / p), the maxima over windows of
    p x p pixels, and moments (B, C, T, 2), the mean and the variance of each band of p rows of the map before pooling;
    the last band may have fewer rows.
    """

    OP_TYPE: ClassVar[str] = "ConvolveV1"
    PATTERN: ClassVar[re.Pattern[str]] = re.compile(r"Convolve\d+x\d+Pool\d+V1")

    channels_in: Count
    channels_out: Count
    height: Count
    width: Count
    kernel: Annotated[int, Field(strict=True, ge=1, le=255)]
    pool: Annotated[int, Field(strict=True, ge=1, le=255)]
    dtype: StorageFormat

    @model_validator(mode="after")
    def _check(self) -> ConvolveV1:
        if self.pool > min(self.height, self.width):
            raise ValueError(f"a map of {self.height} x {self.width} has no window of {self.pool} x {self.pool}")
        return self

    @property
    def storage(self) -> Format:
        return self.dtype

    @property
    def op_type(self) -> str:
        return f"Convolve{self.height}x{self.width}Pool{self.pool}V1"

    @property
    def bands(self) -> int:
        """The number T of bands."""
        return -(-self.height // self.pool)

    def inputs(self) -> list[TensorSpec]:
        margin = self.kernel - 1
        padded = (self.channels_in, self.height + margin, self.width + margin)
        return [
            batched("padded", *padded, dtype=self.dtype),
            constant("weight", self.channels_out, self.channels_in, self.kernel, self.kernel, dtype=self.dtype),
        ]

    def outputs(self) -> list[TensorSpec]:
        return [
            batched("peak", self.channels_out, self.height // self.pool, self.width // self.pool, dtype=self.dtype),
            batched("moments", self.channels_out, self.bands, 2),
        ]


class _Normalised(Operator):
    """The common part of Activate and Score: InstanceNorm by given moments, and Softplus minus an offset, of a map."""

    channels: Count
    height: Count
    width: Count
    bands: Count
    offset: Annotated[float, Field(ge=0, le=80)]
    eps: Annotated[float, Field(gt=0)]
    dtype: StorageFormat

    @property
    def storage(self) -> Format:
        return self.dtype

    def inputs(self) -> list[TensorSpec]:
        return [
            batched("peak", self.channels, self.height, self.width, dtype=self.dtype),
            batched("moments", self.channels, self.bands, 2),
            constant("shares", self.bands, 1),
            constant("scale", self.channels, 1, 1),
            constant("shift", self.channels, 1, 1),
        ]

    def body_attributes(self) -> Attributes:
        return {"offset": self.offset, "eps": self.eps}


class ActivateV1(_Normalised):
    """The activation softplus(norm(peak)) - offset, reflected at its border.

    peak (B, C, h, w) -> padded (B, C, h + 2 p, w + 2 p). moments (B, C, T, 2) are those of ConvolveV1; shares (T, 1)
    holds the share of the map's rows that each band has.
    """

    OP_TYPE: ClassVar[str] = "ActivateV1"

    padding: Annotated[int, Field(strict=True, ge=0, le=127)]

    @model_validator(mode="after")
    def _check(self) -> ActivateV1:
        _check_padding(self.padding, self.height, self.width)
        return self

    def outputs(self) -> list[TensorSpec]:
        rows, columns = self.height + 2 * self.padding, self.width + 2 * self.padding
        return [batched("padded", self.channels, rows, columns, dtype=self.dtype)]

    def body_attributes(self) -> Attributes:
        pads = [0, 0, self.padding, self.padding] * 2
        return {**super().body_attributes(), "pads": pads}


class ScoreV1(_Normalised):
    """The last block's activation and the head: peak (B, C, h, w) -> phi (B, 2, R, R-1), x before y.

    weight (2, C, 1, 1) is that of the head's convolution; pool_rows (R, h) and pool_columns (w, R) are the matrices of
    the adaptive pooling.
    """

    OP_TYPE: ClassVar[str] = "ScoreV1"

    resolution: Annotated[int, Field(strict=True, ge=4, le=64)]

    def inputs(self) -> list[TensorSpec]:
        r = self.resolution
        return [
            *super().inputs(),
            constant("weight", 2, self.channels, 1, 1),
            constant("head_scale", 2, 1, 1),
            constant("head_shift", 2, 1, 1),
            constant("pool_rows", r, self.height),
            constant("pool_columns", self.width, r),
        ]

    def outputs(self) -> list[TensorSpec]:
        return [batched("phi", 2, self.resolution, self.resolution - 1)]


class _Point(Operator):
    resolution: Annotated[int, Field(strict=True, ge=4, le=64)]

    def _point(self, name: str, *before: int) -> TensorSpec:
        return batched(name, *before, 2, self.resolution, self.resolution - 1)


class MixV1(_Point):
    """One step of Anderson acceleration: add the pair of iterate and image = f(iterate) to the memory, and mix it.

    The memory is iterates and images (B, m, 2, R, R-1), the newest last; `count` pairs are in use after this step. The
    outputs are the next iterate (B, 2, R, R-1), and the memory with the new pair in place of the oldest.
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

    def body_attributes(self) -> Attributes:
        return {"unused": self.memory - self.count, "regularisation": self.regularisation, "damping": self.damping}


class KeepV1(_Point):
    """The choice, for each sample, of the image of the iterate with the smallest residual || image - iterate ||^2.

    smallest (B, 1, 1, 1) is the residual of `best`.
    """

    OP_TYPE: ClassVar[str] = "KeepV1"

    def inputs(self) -> list[TensorSpec]:
        return [self._point("iterate"), self._point("image"), self._point("best"), batched("smallest", 1, 1, 1)]

    def outputs(self) -> list[TensorSpec]:
        return [self._point("new_best"), batched("new_smallest", 1, 1, 1)]


_KINDS: dict[str, type[Operator]] = {
    operator.OP_TYPE: operator for operator in (WarpV1, ActivateV1, ScoreV1, MixV1, KeepV1)
}


def kind_of(op_type: str) -> type[Operator] | None:
    """Return the class of an operator by its name in a graph, or None for another function, such as a solve."""
    return ConvolveV1 if ConvolveV1.PATTERN.fullmatch(op_type) else _KINDS.get(op_type)
