"""The source of a model's weights, as manifests record it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WeightSource:
    """The source of a model's weights.

    backbone, canonicalizer: "checkpoint", "pretrained" (by timm) or "random" (seeded); the canonicalizer's source is
    "none" in a model without canonicalizers.
    detail: the source in one sentence.
    seed: the seed of random weights; None when no weights are random.
    file, sha256: the name and the hash of the checkpoint; None without a checkpoint.
    """

    backbone: Literal["checkpoint", "pretrained", "random"]
    canonicalizer: Literal["checkpoint", "random", "none"]
    detail: str
    seed: int | None = None
    file: str | None = None
    sha256: str | None = None
