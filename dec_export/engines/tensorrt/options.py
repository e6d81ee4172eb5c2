"""The options of a TensorRT build. Their types are in `bundle.plans`, because the manifest holds them."""

from __future__ import annotations

from dec_export.bundle.plans import DEFAULT_BATCH, BuildOptions, HardwareCompatibility

__all__ = ["DEFAULT_BATCH", "BuildOptions", "HardwareCompatibility"]
