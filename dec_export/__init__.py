"""dec-export: from a recipe of a Deep Equilibrium Canonicalizer model to a proven bundle for serving.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dec_export.bundle import Bundle
    from dec_export.errors import DecExportError
    from dec_export.pipeline import build
    from dec_export.recipe import Recipe

    __version__: str

__all__ = ["Bundle", "DecExportError", "Recipe", "__version__", "build"]

_HOME = {
    "Bundle": "dec_export.bundle",
    "DecExportError": "dec_export.errors",
    "Recipe": "dec_export.recipe",
    "build": "dec_export.pipeline",
}


def __dir__() -> list[str]:
    return [*globals(), *_HOME, "__version__", "engines"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("dec-export")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "engines":
        return import_module("dec_export.engines")
    raise AttributeError(f"module 'dec_export' has no attribute '{name}'")
