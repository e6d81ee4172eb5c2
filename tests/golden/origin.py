"""Which libraries and which processor made a golden file that only they can make again."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import onnxruntime

_EXPORTER = ("torch", "onnxscript", "onnx", "onnx-ir", "timm", "numpy")


def exporter() -> dict[str, str]:
    """What decides the bytes of an ONNX graph."""
    return {name: version(name) for name in _EXPORTER}


def arithmetic() -> dict[str, str]:
    """What decides the last digit of a result."""
    return {**exporter(), "onnxruntime": onnxruntime.__version__, "processor": _processor()}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
