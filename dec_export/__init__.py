"""dec-export turns a recipe of a Deep Equilibrium Canonicalizer model into a proven bundle for serving.

The names below are loaded when they are first used, so that importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any  # public names have types of every kind

if TYPE_CHECKING:
    from dec_export.bundle.plans import BuildOptions
    from dec_export.bundle.store import Bundle
    from dec_export.engines.base import RunOptions
    from dec_export.errors import DecExportError
    from dec_export.evaluation.options import EvaluationOptions
    from dec_export.evaluation.predictions import PredictionOptions, predict
    from dec_export.evaluation.run import evaluate
    from dec_export.forms import Forms
    from dec_export.pipeline.build import build
    from dec_export.pipeline.options import EngineOptions, ProofOptions, WeightOptions
    from dec_export.pipeline.prove import prove
    from dec_export.recipe.model import Recipe

    __version__: str

__all__ = [
    "BuildOptions",
    "Bundle",
    "DecExportError",
    "EngineOptions",
    "EvaluationOptions",
    "Forms",
    "PredictionOptions",
    "ProofOptions",
    "Recipe",
    "RunOptions",
    "WeightOptions",
    "__version__",
    "build",
    "evaluate",
    "predict",
    "prove",
]

_HOME = {
    "BuildOptions": "dec_export.bundle.plans",
    "Bundle": "dec_export.bundle.store",
    "DecExportError": "dec_export.errors",
    "EngineOptions": "dec_export.pipeline.options",
    "EvaluationOptions": "dec_export.evaluation.options",
    "Forms": "dec_export.forms",
    "PredictionOptions": "dec_export.evaluation.predictions",
    "ProofOptions": "dec_export.pipeline.options",
    "Recipe": "dec_export.recipe.model",
    "RunOptions": "dec_export.engines.base",
    "WeightOptions": "dec_export.pipeline.options",
    "build": "dec_export.pipeline.build",
    "evaluate": "dec_export.evaluation.run",
    "predict": "dec_export.evaluation.predictions",
    "prove": "dec_export.pipeline.prove",
}
_MODULES = ("engines", "progress")


def __dir__() -> list[str]:
    return [*globals(), *_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("dec-export")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"dec_export.{name}")
    raise AttributeError(f"module 'dec_export' has no attribute '{name}'")
