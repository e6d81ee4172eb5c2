"""What every rewriting of a written ONNX model has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import onnx


class Pass(ABC):
    """One rewriting of an ONNX model.

    name: what it is called. requires: what must hold of the model that it is given. ensures: what holds of the model
    that it returns, beside everything that held before.
    """

    name: ClassVar[str]
    requires: ClassVar[str]
    ensures: ClassVar[str]

    @abstractmethod
    def apply(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The rewritten model; `proto` stays as it is. Raises ExportError when `proto` is not what it requires."""
