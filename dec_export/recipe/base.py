"""The base class of every part of a recipe, which is frozen, refuses unknown fields, and is strict about types."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of the types of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
