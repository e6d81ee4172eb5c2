"""The source of a model's weights, as manifests record it."""

from __future__ import annotations

from typing import Any, Literal  # values of JSON

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WeightSource:
    """The source of a model's weights.

    backbone, canonicalizer: "checkpoint", "pretrained" (by timm) or "random" (seeded); the canonicalizer's source is
    "none" in a model without canonicalizers.
    detail: the source in one sentence.
    seed: the seed of random weights; None when no weights are random.
    file, sha256: the name and the hash of the checkpoint; None without a checkpoint.
    canonicalizer_file, canonicalizer_sha256: those of the canonicalizers' file, if they have one of their own; a
    manifest leaves them out otherwise.
    """

    backbone: Literal["checkpoint", "pretrained", "random"]
    canonicalizer: Literal["checkpoint", "random", "none"]
    detail: str
    seed: int | None = None
    file: str | None = None
    sha256: str | None = None
    canonicalizer_file: str | None = None
    canonicalizer_sha256: str | None = None

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        second = ("canonicalizer_file", "canonicalizer_sha256")
        return {key: value for key, value in dumped.items() if value is not None or key not in second}
