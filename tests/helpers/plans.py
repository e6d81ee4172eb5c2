"""Plans of TensorRT that no TensorRT made, and what a manifest says about them."""

from __future__ import annotations

import struct

from dec_export.bundle.plans import BuildOptions, PlanEntry
from dec_export.engines.tensorrt.flavours import TENSORRT_RTX, Flavour
from dec_export.gpu import Gpu

L40 = Gpu("NVIDIA L40", (8, 9), 48 << 30, "13.0")


def header(flavour: Flavour, version: tuple[int, ...] = (1, 7, 1, 116), size: int = 64) -> bytes:
    """Return a plan of 64 bytes with the tag, two numbers that are not read, its size, and the version."""
    start = flavour.tag + struct.pack("<IQQ", 0, 2, size) + bytes(version)
    return start + bytes(64 - len(start))


def entry(flavour: Flavour = TENSORRT_RTX, **changes: object) -> PlanEntry:
    facts = {
        "file": flavour.plan,
        "layers_file": flavour.layers,
        "version": "1.7.1.116",
        "cuda": "13",
        "gpu": None,
        "compute_capabilities": ("8.0",),
        "and_later": True,
        "options": BuildOptions(),
        "timing_cache": None,
        "precision": {},
        "layers": {"count": 0, "by_dtype": {}, "by_type": {}},
        "seconds": 1.0,
        "peak_memory_bytes": None,
    }
    return PlanEntry.model_validate({**facts, **changes})
