"""The conditions under which images are evaluated: unchanged, locally scaled, or corrupted.

A condition changes each image by its name and the seed alone, so the same image changes in the same way in every run,
whatever other images there are. A new condition is a class with these methods.
"""

from __future__ import annotations

import zlib
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from dec_export.evaluation.corruptions.registry import corrupt
from dec_export.parity.measures.invariance import local_scale_phi
from dec_export.reference.warp import Phi, warp


def seed_of(seed: int, name: str) -> tuple[int, int]:
    """Return the seed of one image, which depends on the seed of the evaluation and on the image's name."""
    return seed, zlib.crc32(name.encode())


class Condition(ABC):
    """A change of images.

    name: its name, as "local scaling 0.2". family, strength: what is changed and how much, for curves; the images
    without a change have the family "clean" and the strength 0. warps: whether it warps; invariance is measured then.
    """

    name: str
    family: str
    strength: float
    warps: ClassVar[bool] = False

    def change_pixels(self, pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:  # noqa: ARG002
        """Return the pixels (H, W, 3) of the image `name` after a change that acts on 8-bit images."""
        return pixels

    def warp_of(self, name: str) -> Phi | None:  # noqa: ARG002
        """Return the warp of the image `name`, or None if the condition does not warp."""
        return None


@dataclass(frozen=True)
class Clean(Condition):
    """The images as they are."""

    name: str = "clean"
    family: str = "clean"
    strength: float = 0.0


@dataclass(frozen=True)
class LocalScaling(Condition):
    """The paper's local changes of scale (docs/semantics.md, section 7), drawn for each image."""

    strength: float
    seed: int = 0
    family: str = "local scaling"
    warps: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override] # a property instead of an attribute
        return f"local scaling {self.strength:g}"

    def warp_of(self, name: str) -> Phi:
        return local_scale_phi(1, seed_of(self.seed, name), self.strength)


@dataclass(frozen=True)
class Corruption(Condition):
    """A corruption of arXiv 1903.12261 at a severity from 1 to 5 (`evaluation.corruptions`), drawn for each image."""

    corruption: str
    severity: int
    seed: int = 0

    @property
    def name(self) -> str:  # type: ignore[override] # a property instead of an attribute
        return f"{self.corruption} {self.severity}"

    @property
    def family(self) -> str:  # type: ignore[override]
        return self.corruption

    @property
    def strength(self) -> float:  # type: ignore[override]
        return float(self.severity)

    def change_pixels(self, pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        return corrupt(pixels, self.corruption, self.severity, name, self.seed)


def warped(inputs: NDArray[np.float32], phi: Phi) -> NDArray[np.float32]:
    """Return model inputs (N, 3, H, W), each warped by its own warp in float64 and rounded once."""
    return warp(phi, torch.from_numpy(inputs).double()).float().numpy()
