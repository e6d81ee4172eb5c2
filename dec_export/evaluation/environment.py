"""What the numbers of an evaluation depend on besides its plan: the engines as they run here, libraries, the processor.

Two processes with equal environments compute equal numbers from equal plans.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from dec_export.engines.registry import libraries
from dec_export.evaluation.models import Model
from dec_export.libraries import installed_versions

# Libraries that decode and change images, beside those of the engines.
_FOR_IMAGES = ("pillow", "torchvision", "scipy", "scikit-image", "opencv-python-headless")


@dataclass(frozen=True)
class Environment:
    """The environment of a process that computes chunks.

    engines: the name of each model's engine. details: what each engine reports about itself, as JSON. versions: of
    Python and the libraries, as JSON. processor: its architecture and its instructions that PyTorch uses.
    """

    engines: tuple[str, ...]
    details: tuple[str, ...]
    versions: str
    processor: str

    def difference(self, other: Environment) -> str | None:
        """Return in words what differs from another environment, or None if nothing does."""
        for ours, theirs in zip((*self.details, self.processor), (*other.details, other.processor), strict=True):
            if ours != theirs:
                return f"{ours} instead of {theirs}"
        versions, others = json.loads(self.versions), json.loads(other.versions)
        names = sorted(name for name in {*versions, *others} if versions.get(name) != others.get(name))
        return f"{names[0]} {versions.get(names[0])} instead of {others.get(names[0])}" if names else None


def environment_of(models: Sequence[Model]) -> Environment:
    """Return the environment of this process, which has loaded the models."""
    import torch

    details = [model.engine.describe().as_dict() for model in models]
    versions = {"python": platform.python_version(), **installed_versions((*libraries(), *_FOR_IMAGES))}
    return Environment(
        engines=tuple(model.engine.name for model in models),
        details=tuple(json.dumps(found, sort_keys=True) for found in details),
        versions=json.dumps(versions, sort_keys=True),
        processor=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    )
