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
    from torch import dtype as TorchType


@dataclass(frozen=True)
class _Facts:
    """What is to be known of a format.

    label: its name in NumPy, ONNX's documents and texts for people. torch: PyTorch's attribute. onnx: the name in
    `onnx.TensorProto`. size: bytes of one number. significand: bits of the significand, the implicit one included.
    tolerance: the share by which InvE, EqE and equivariance errors of an engine with a part in this format may differ
    from the reference's. tensorrt: the name in `tensorrt.DataType`, None where TensorRT does not have the format.
    spellings: words for it in what TensorRT says of its layers, in lower case. triton: the name of the type in the
    Triton language. for_solver: whether the canonicalizers' convolutions can be in it.
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
        """Whether the canonicalizers' convolutions, and so what the `dec` operators store, can be in this format."""
        return _FACTS[self].for_solver

    @property
    def for_backbone(self) -> bool:
        """Whether a backbone can be computed in this format."""
        return _FACTS[self].for_backbone

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
    def of_torch(cls, dtype: TorchType) -> Format:
        """The format of a PyTorch dtype. Raises KeyError when there is none."""
        return _BY_TORCH[str(dtype).removeprefix("torch.")]

    @classmethod
    def of_tensorrt(cls, name: str) -> Format | None:
        """The format of a name in `tensorrt.DataType`; None for indices and booleans."""
        return _BY_TENSORRT.get(name)

    @classmethod
    def in_text(cls, text: str) -> Format | None:
        """The format that a text of TensorRT names, as "Row major linear FP16 format"; None when it names none.

        "BFloat16" holds "Float16", which holds "Float": the longest spelling that is found is the one that is meant.
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
    # Not for the solver: ONNX has no bfloat16 convolution before opset 22, and GridSample keeps the opset at 18.
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

# The formats that the canonicalizers' convolutions can be in.
SOLVER_FORMATS = tuple(name for name in Format if name.for_solver)
# A backbone can be computed in these formats.
BACKBONE_FORMATS = tuple(name for name in Format if name.for_backbone)


def tolerance_of(formats: Iterable[Format]) -> float:
    """The tolerance of an engine whose parts are in these formats: that of the coarsest."""
    return max(name.tolerance for name in formats)
