"""The number formats that a part of a model can compute in, and how each library spells them.

This is the only table of formats. A format that is added here is known to recipes, graphs, engines and gates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class _Facts:
    """What is to be known of a format.

    label: its name in NumPy, ONNX's documents and texts for people. torch: PyTorch's attribute. onnx: the name in
    `onnx.TensorProto`. size: bytes of one number. significand: bits of the significand, the implicit one included.
    tolerance: the share by which InvE, EqE and equivariance errors of an engine with a part in this format may differ
    from the reference's. spellings: words for it in what TensorRT says of its layers, in lower case.
    """

    label: str
    torch: str
    onnx: str
    size: int
    significand: int
    tolerance: float
    spellings: tuple[str, ...]


class Format(str, Enum):
    """A number format; its value is the word for it on the command line and in manifests."""

    FP64 = "fp64"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"

    def __str__(self) -> str:
        return self.value

    @property
    def label(self) -> str:
        """The name in NumPy, ONNX's documents and texts for people, as "float32"."""
        return _FACTS[self].label

    @property
    def size(self) -> int:
        """Bytes of one number."""
        return _FACTS[self].size

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number of the format."""
        return float(2.0 ** -_FACTS[self].significand)

    @property
    def tolerance(self) -> float:
        """The share by which an engine's InvE, EqE and equivariance errors may differ from the reference's."""
        return _FACTS[self].tolerance

    @property
    def torch(self) -> torch.dtype:
        """PyTorch's dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, _FACTS[self].torch)
        return dtype

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's dtype. Raises TypeError for a format that NumPy does not have."""
        import numpy as np

        return np.dtype(self.label)

    @property
    def onnx(self) -> int:
        """The element type of an ONNX tensor."""
        import onnx

        return int(onnx.TensorProto.DataType.Value(_FACTS[self].onnx))

    @classmethod
    def of_label(cls, label: str) -> Format:
        """The format of a name such as "float32". Raises KeyError when there is none."""
        return _BY_LABEL[label]

    @classmethod
    def of_onnx(cls, element_type: int) -> Format | None:
        """The format of an ONNX tensor's element type; None for indices, booleans and text."""
        import onnx

        return _BY_ONNX.get(onnx.TensorProto.DataType.Name(element_type))

    @classmethod
    def of_torch(cls, dtype: torch.dtype) -> Format:
        """The format of a PyTorch dtype. Raises KeyError when there is none."""
        return _BY_TORCH[str(dtype).removeprefix("torch.")]


_FACTS = {
    Format.FP64: _Facts("float64", "float64", "DOUBLE", 8, 53, 0.01, ("double", "float64", "fp64")),
    Format.FP32: _Facts("float32", "float32", "FLOAT", 4, 24, 0.01, ("float32", "fp32", "float")),
    Format.FP16: _Facts("float16", "float16", "FLOAT16", 2, 11, 0.05, ("half", "float16", "fp16")),
    Format.BF16: _Facts("bfloat16", "bfloat16", "BFLOAT16", 2, 8, 0.05, ("bfloat16", "bf16")),
    Format.INT8: _Facts("int8", "int8", "INT8", 1, 8, 0.05, ("int8",)),
    Format.FP8: _Facts("float8_e4m3fn", "float8_e4m3fn", "FLOAT8E4M3FN", 1, 4, 0.05, ("float8", "fp8", "f8")),
}
_BY_LABEL = {facts.label: name for name, facts in _FACTS.items()}
_BY_ONNX = {facts.onnx: name for name, facts in _FACTS.items()}
_BY_TORCH = {facts.torch: name for name, facts in _FACTS.items()}


def spellings(format_: Format) -> tuple[str, ...]:
    """Words for the format in what TensorRT says of its layers, in lower case."""
    return _FACTS[format_].spellings


def tolerance_of(formats: Iterable[Format]) -> float:
    """The tolerance of an engine whose parts are in these formats: that of the coarsest."""
    return max(name.tolerance for name in formats)
