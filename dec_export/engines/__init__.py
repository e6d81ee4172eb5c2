"""Engines: what runs a model. One protocol, one module for each runtime."""

from __future__ import annotations

from dec_export.engines.base import Engine, load

__all__ = ["Engine", "load"]
