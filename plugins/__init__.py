"""The TensorRT plugin: kernels of the `dec` operators, and whether an engine built here would hold them.

The package is installed as `dec_plugins`, and lies in the folder `plugins`. Its modules import each other relatively,
so that a type checker, which sees folders, and Python, which sees what is installed, find the same modules.

`kernels` (Triton language), `plans` (constants and grids), `compiler` (PTX), `registration` (with TensorRT), `chain`
and `cuda` (a solve without TensorRT). Importing this package imports none of them, and no TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dec_export.libraries import has_package, version_of_package

if TYPE_CHECKING:
    from dec_export.onnx_export.operators import Operator

# Ahead-of-time plugins, whose kernels are stored inside the engine, came with this release.
MINIMUM_TENSORRT = (10, 9)


@dataclass(frozen=True)
class PluginSupport:
    """available: an engine of TensorRT built here would hold the kernels. detail: one clause that says why (not)."""

    available: bool
    detail: str


def plugin_support() -> PluginSupport:
    """Look at the installed TensorRT and Triton language, without importing them."""
    if not has_package("tensorrt"):
        return PluginSupport(False, "TensorRT is not installed (pip install tensorrt, from NVIDIA's package index)")
    version = version_of_package("tensorrt") or "unknown"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return PluginSupport(False, f"a package 'tensorrt' is there, but its version, {version}, cannot be read")
    if (int(found[1]), int(found[2])) < MINIMUM_TENSORRT:
        needed = ".".join(map(str, MINIMUM_TENSORRT))
        return PluginSupport(False, f"TensorRT {version} is older than {needed}, the first with ahead-of-time plugins")
    reason = why_not_compilable()
    if reason:
        return PluginSupport(False, reason)
    return PluginSupport(True, f"TensorRT {version} stores the kernels in its engines")


def make_ready(operators: Iterable[Operator]) -> None:
    """Compile the kernel of every operator, and register the operators with the TensorRT of this process.

    TensorRT keeps to itself what goes wrong when it asks for a kernel. Here an error can name the node: EngineError for
    one whose kernel cannot be had, or when the operators cannot be registered.
    """
    from .compiler import compile_kernel
    from .registration import register

    operators = list(operators)
    for operator in operators:
        compile_kernel(operator)
    register(operator.op_type for operator in operators)


def why_not_compilable() -> str | None:
    """A clause that says why kernels cannot be compiled here, or None when they can."""
    if not has_package("triton"):
        return "the Triton language, in which the kernels are written, is not installed (pip install triton, on Linux)"
    return None
