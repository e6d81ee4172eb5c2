"""The base class of every part of a recipe, which is frozen, refuses unknown fields, and is strict about types.

The limits of sizes that several parts share are here as well.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ImageSize = Annotated[int, Field(strict=True, ge=1, le=4096)]
ChannelCount = Annotated[int, Field(strict=True, ge=1, le=4096)]
WindowSize = Annotated[int, Field(strict=True, ge=1, le=255)]


class Frozen(BaseModel):
    """Base of the types of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
