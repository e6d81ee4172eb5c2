"""The TensorRT plugin with the kernels of the `dec` operators, and the check whether it can be used here.

The package is installed as `dec_plugins` from the folder `plugins`. Its modules import each other relatively, so that a
type checker, which sees the folder, and Python, which sees the installed package, find the same modules.

`kernels` holds the kernels in the Triton language, `plans` their constants and grids, `compiler` compiles them to PTX,
and `registration` registers them with TensorRT. `chain` and `cuda` run a solve without TensorRT. An import of this
package imports neither these modules nor TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dec_export.libraries import has_package, version_of_package

if TYPE_CHECKING:
    from dec_export.onnx_export.operators import Operator

# This release introduced ahead-of-time plugins, whose kernels are stored inside the engine.
MINIMUM_TENSORRT = (10, 9)


@dataclass(frozen=True)
class PluginSupport:
    """Whether a TensorRT engine that is built here would hold the kernels. detail: a clause with the reason."""

    available: bool
    detail: str


def plugin_support() -> PluginSupport:
    """Examine the installed TensorRT and Triton language without an import."""
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

    TensorRT does not report an error of a kernel's compilation, so the kernels are compiled here first. Raises
    EngineError, which names the node, when a kernel cannot be compiled, and when the operators cannot be registered.
    """
    from .compiler import compile_kernel
    from .registration import register

    operators = list(operators)
    for operator in operators:
        compile_kernel(operator)
    register(operator.op_type for operator in operators)


def why_not_compilable() -> str | None:
    """Return a clause that says why kernels cannot be compiled here, or None when they can."""
    if not has_package("triton"):
        return "the Triton language, in which the kernels are written, is not installed (pip install triton, on Linux)"
    return None
