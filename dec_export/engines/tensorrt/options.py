"""What may be asked of a TensorRT build, and which flavour can do it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dec_export.engines.tensorrt.flavours import TENSORRT, TENSORRT_RTX, Flavour

DEFAULT_BATCH = (1, 8, 32)
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
_Batch = Annotated[int, Field(ge=1, le=65535)]


class BuildOptions(BaseModel):
    """batch: smallest, likeliest and largest batch of the optimisation profile.

    workspace_bytes: limit of the scratch memory that a layer may ask for; None leaves it to TensorRT.
    compute_capabilities: GPUs that an engine of TensorRT for RTX is for, as "8.9"; empty: 8.0 and later.
    hardware_compatibility, version_compatible: as in TensorRT's builder; they cost speed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: tuple[_Batch, _Batch, _Batch] = DEFAULT_BATCH
    workspace_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 40)] | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False

    @model_validator(mode="after")
    def _ascending(self) -> BuildOptions:
        if list(self.batch) != sorted(self.batch):
            raise ValueError(f"expected MIN <= OPT <= MAX in the batch, found {','.join(map(str, self.batch))}")
        return self

    @field_validator("compute_capabilities")
    @classmethod
    def _well_formed(cls, found: tuple[str, ...]) -> tuple[str, ...]:
        for capability in found:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise ValueError(f"expected a compute capability such as 8.9, found '{capability}'")
        return found

    @property
    def capability_pairs(self) -> list[tuple[int, int]]:
        """compute_capabilities as (major, minor)."""
        return [(int(major), int(minor)) for major, minor in (c.split(".") for c in self.compute_capabilities)]

    def why_unfit(self, flavour: Flavour) -> str | None:
        """A clause that names the option which a flavour does not have, or None.

        TensorRT for RTX ignores the hardware compatibility with a warning, and lacks the library that version
        compatibility needs; TensorRT itself always builds for the GPU at hand.
        """
        if flavour is TENSORRT and self.compute_capabilities:
            return "--compute-capability is for TensorRT for RTX: TensorRT builds for the GPU at hand"
        if flavour is TENSORRT_RTX and self.hardware_compatibility != "none":
            return "--hardware-compatibility is for TensorRT: TensorRT for RTX has --compute-capability"
        if flavour is TENSORRT_RTX and self.version_compatible:
            return "--version-compatible is for TensorRT: TensorRT for RTX has no lean runtime"
        return None
