"""The TensorRT side of dec-export: whether the solver's plugin could be used with the TensorRT that is installed.

Importing this package imports no TensorRT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dec_export.libraries import has_package, version_of_package

# Ahead-of-time plugins, whose kernels are stored inside the engine, came with this release.
MINIMUM_TENSORRT = (10, 9)


@dataclass(frozen=True)
class PluginSupport:
    """available: TensorRT is there and can store ahead-of-time plugins. detail: one clause that says why (not)."""

    available: bool
    detail: str


def plugin_support() -> PluginSupport:
    """Look at the installed TensorRT's version, without importing it."""
    if not has_package("tensorrt"):
        return PluginSupport(False, "TensorRT is not installed (pip install tensorrt, from NVIDIA's package index)")
    version = version_of_package("tensorrt") or "unknown"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return PluginSupport(False, f"a package 'tensorrt' is there, but its version, {version}, cannot be read")
    if (int(found[1]), int(found[2])) < MINIMUM_TENSORRT:
        needed = ".".join(map(str, MINIMUM_TENSORRT))
        return PluginSupport(False, f"TensorRT {version} is older than {needed}, the first with ahead-of-time plugins")
    return PluginSupport(True, f"TensorRT {version} can store ahead-of-time plugins in its engines")
