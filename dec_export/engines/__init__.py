"""The engines that run a model: one protocol, one module for each runtime, and the registry that lists them."""

from __future__ import annotations

from dec_export.engines.base import Engine, EngineDetails, RunOptions
from dec_export.engines.registry import load

__all__ = ["Engine", "EngineDetails", "RunOptions", "load"]
