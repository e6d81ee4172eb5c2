"""The names, formats and shapes of the inputs and outputs of an operator's node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dec_export.formats import Format


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a node.

    shape: its sizes; None stands for the batch, which is always the first dimension.
    """

    name: str
    format: Format
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return describe(self.format.label, self.shape)

    def accepts(self, label: str, shape: Sequence[int | None]) -> bool:
        """Return whether a tensor may have this format and shape, in which None is a size that is not known."""
        return (
            label == self.format.label
            and len(shape) == len(self.shape)
            and all(n is None or wanted in (None, n) for n, wanted in zip(shape, self.shape, strict=True))
        )

    def sizes(self, batch: int) -> list[int]:
        """Return the shape for a batch of this size."""
        return [batch if n is None else n for n in self.shape]


def describe(label: str, shape: Sequence[int | None]) -> str:
    """Return a format and a shape in words, as "float32 (batch, 3, 64, 64)"."""
    return f"{label} ({', '.join('batch' if n is None else str(n) for n in shape)})"


def batched(name: str, *shape: int, dtype: Format = Format.FP32) -> TensorSpec:
    """Return the specification of a tensor whose first dimension is the batch."""
    return TensorSpec(name, dtype, (None, *shape))


def constant(name: str, *shape: int, dtype: Format = Format.FP32) -> TensorSpec:
    """Return the specification of a tensor without a batch, such as a weight."""
    return TensorSpec(name, dtype, shape)
