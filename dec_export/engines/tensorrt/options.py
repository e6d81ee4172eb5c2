"""What may be asked of a TensorRT build; the manifest keeps it, so the types are `bundle.plans`'s."""

from __future__ import annotations

from dec_export.bundle.plans import DEFAULT_BATCH, BuildOptions, HardwareCompatibility

__all__ = ["DEFAULT_BATCH", "BuildOptions", "HardwareCompatibility"]
