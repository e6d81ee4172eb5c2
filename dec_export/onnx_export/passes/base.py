"""The base class of every rewriting of an exported ONNX model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import onnx


class Pass(ABC):
    """One rewriting of an ONNX model.

    name: the name of the rewriting.
    requires: the conditions that the given model must meet.
    ensures: the conditions that the returned model meets in addition to those that the given model met.
    """

    name: ClassVar[str]
    requires: ClassVar[str]
    ensures: ClassVar[str]

    @abstractmethod
    def apply(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return the rewritten model without changing `proto`; raise ExportError if `proto` lacks a requirement."""
