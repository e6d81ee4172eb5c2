"""Where a model's weights came from."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WeightSource:
    """Where a model's weights came from.

    backbone, canonicalizer: "checkpoint", "pretrained" (timm) or "random" (seeded); "none" is a model without any.
    file, sha256: name and hash of the checkpoint, when there is one.
    detail: one sentence for people.
    """

    backbone: Literal["checkpoint", "pretrained", "random"]
    canonicalizer: Literal["checkpoint", "random", "none"]
    detail: str
    seed: int | None = None
    file: str | None = None
    sha256: str | None = None
