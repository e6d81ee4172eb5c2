"""The number formats in which a part of a model can compute, and their names in each library.

This is the only table of formats. Recipes, graphs, engines and gates know every format that is added here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any  # each format has a NumPy type of its own

if TYPE_CHECKING:
    import numpy as np
    from torch import dtype as TorchType


@dataclass(frozen=True)
class _Facts:
    """The properties of a format.

    label: its name in NumPy, ONNX's documents and texts for people. torch: the name of PyTorch's attribute. onnx: the
    name in `onnx.TensorProto`. size: the number of bytes of one number. significand: the bits of the significand,
    including the implicit bit. tolerance: the relative difference that is allowed between the InvE, EqE and
    equivariance errors of an engine with a part in this format and those of the reference. tensorrt: the name in
    `tensorrt.DataType`, or None when TensorRT does not have the format. spellings: its names in TensorRT's descriptions
    of layers, in lower case. triton: the name of the type in the Triton language. for_solver: whether the
    canonicalizers' convolutions can be in this format.
    """

    label: str
    torch: str
    onnx: str
    size: int
    significand: int
    tolerance: float
    tensorrt: str | None
    spellings: tuple[str, ...]
    triton: str
    for_solver: bool = False
    for_backbone: bool = False  # whether a backbone can be computed in the format


class Format(str, Enum):
    """A number format. Its value is its name on the command line and in manifests."""

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
        """The name in NumPy, ONNX's documents and texts for people, such as "float32"."""
        return _FACTS[self].label

    @property
    def size(self) -> int:
        """The number of bytes of one number."""
        return _FACTS[self].size

    @property
    def unit_roundoff(self) -> float:
        """The unit roundoff, which is half the distance from 1 to the next number of the format."""
        return float(2.0 ** -_FACTS[self].significand)

    @property
    def tolerance(self) -> float:
        """The allowed relative difference of an engine's InvE, EqE and equivariance errors from the reference's."""
        return _FACTS[self].tolerance

    @property
    def torch(self) -> TorchType:
        """PyTorch's dtype."""
        import torch

        dtype: TorchType = getattr(torch, _FACTS[self].torch)
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

    @property
    def tensorrt(self) -> str:
        """The name in `tensorrt.DataType`. Raises KeyError for a format that TensorRT does not have."""
        name = _FACTS[self].tensorrt
        if name is None:
            raise KeyError(self.value)
        return name

    @property
    def triton_pointer(self) -> str:
        """The type of a pointer to numbers of this format in the signature of a kernel in the Triton language."""
        return f"*{_FACTS[self].triton}"

    @property
    def for_solver(self) -> bool:
        """Whether the canonicalizers' convolutions, and thus the storage of the `dec` operators, can be in it."""
        return _FACTS[self].for_solver

    @property
    def for_backbone(self) -> bool:
        """Whether a backbone can be computed in this format."""
        return _FACTS[self].for_backbone

    @classmethod
    def of_label(cls, label: str) -> Format:
        """Return the format with a label such as "float32". Raises KeyError when there is none."""
        return _BY_LABEL[label]

    @classmethod
    def of_onnx(cls, element_type: int) -> Format | None:
        """Return the format of an ONNX element type, or None for indices, booleans and text."""
        import onnx

        return _BY_ONNX.get(onnx.TensorProto.DataType.Name(element_type))

    @classmethod
    def of_torch(cls, dtype: TorchType) -> Format:
        """Return the format of a PyTorch dtype. Raises KeyError when there is none."""
        return _BY_TORCH[str(dtype).removeprefix("torch.")]

    @classmethod
    def of_tensorrt(cls, name: str) -> Format | None:
        """Return the format with a name in `tensorrt.DataType`, or None for indices and booleans."""
        return _BY_TENSORRT.get(name)

    @classmethod
    def in_text(cls, text: str) -> Format | None:
        """Return the format that a text of TensorRT names, such as "Row major linear FP16 format", or None.

        "BFloat16" contains "Float16", which contains "Float"; therefore the longest spelling in the text counts.
        """
        return next((name for spelling, name in _SPELLINGS if spelling in text.lower()), None)


_FACTS = {
    Format.FP64: _Facts(
        label="float64",
        torch="float64",
        onnx="DOUBLE",
        size=8,
        significand=53,
        tolerance=0.01,
        tensorrt=None,
        spellings=("double", "float64", "fp64"),
        triton="fp64",
    ),
    Format.FP32: _Facts(
        label="float32",
        torch="float32",
        onnx="FLOAT",
        size=4,
        significand=24,
        tolerance=0.01,
        tensorrt="FLOAT",
        spellings=("float32", "fp32", "float"),
        triton="fp32",
        for_solver=True,
        for_backbone=True,
    ),
    Format.FP16: _Facts(
        label="float16",
        torch="float16",
        onnx="FLOAT16",
        size=2,
        significand=11,
        tolerance=0.05,
        tensorrt="HALF",
        spellings=("half", "float16", "fp16"),
        triton="fp16",
        for_solver=True,
        for_backbone=True,
    ),
    # The solver cannot use bfloat16: ONNX has such convolutions from opset 22 on, and GridSample needs opset 18.
    Format.BF16: _Facts(
        label="bfloat16",
        torch="bfloat16",
        onnx="BFLOAT16",
        size=2,
        significand=8,
        tolerance=0.05,
        tensorrt="BF16",
        spellings=("bfloat16", "bf16"),
        triton="bf16",
        for_backbone=True,
    ),
    Format.INT8: _Facts(
        label="int8",
        torch="int8",
        onnx="INT8",
        size=1,
        significand=8,
        tolerance=0.05,
        tensorrt="INT8",
        spellings=("int8",),
        triton="i8",
    ),
    Format.FP8: _Facts(
        label="float8_e4m3fn",
        torch="float8_e4m3fn",
        onnx="FLOAT8E4M3FN",
        size=1,
        significand=4,
        tolerance=0.05,
        tensorrt="FP8",
        spellings=("float8", "fp8", "f8"),
        triton="fp8e4nv",
    ),
}
_BY_LABEL = {facts.label: name for name, facts in _FACTS.items()}
_BY_ONNX = {facts.onnx: name for name, facts in _FACTS.items()}
_BY_TORCH = {facts.torch: name for name, facts in _FACTS.items()}
_BY_TENSORRT = {facts.tensorrt: name for name, facts in _FACTS.items() if facts.tensorrt is not None}
_SPELLINGS = sorted(
    ((spelling, name) for name, facts in _FACTS.items() for spelling in facts.spellings),
    key=lambda entry: len(entry[0]),
    reverse=True,
)

# The canonicalizers' convolutions can be in these formats.
SOLVER_FORMATS = tuple(name for name in Format if name.for_solver)
# A backbone can be computed in these formats.
BACKBONE_FORMATS = tuple(name for name in Format if name.for_backbone)


def tolerance_of(formats: Iterable[Format]) -> float:
    """Return the tolerance of an engine whose parts are in these formats, which is that of the coarsest format."""
    return max(name.tolerance for name in formats)
