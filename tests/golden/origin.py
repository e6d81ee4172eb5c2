"""The libraries and the processor that recorded a golden file which others cannot reproduce."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import onnxruntime

_EXPORTER = ("torch", "onnxscript", "onnx", "onnx-ir", "timm", "numpy")


def exporter() -> dict[str, str]:
    """Return the versions on which the bytes of an ONNX graph depend."""
    return {name: version(name) for name in _EXPORTER}


def arithmetic() -> dict[str, str]:
    """Return the versions and the processor on which the last digits of a result depend."""
    return {**exporter(), "onnxruntime": onnxruntime.__version__, "processor": _processor()}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
