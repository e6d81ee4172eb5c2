"""What a manifest says of a TensorRT engine: what was asked of its build, and what was read back from it.

These are data alone: reading a plan, and building one, is the business of `engines.tensorrt`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dec_export.gpu import Gpu

PlanName = Literal["tensorrt", "tensorrt-rtx"]
DEFAULT_BATCH = (1, 8, 32)
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
_Batch = Annotated[int, Field(ge=1, le=65535)]
_Capability = Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]


class Strict(BaseModel):
    """A frozen model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NamedEngine(Protocol):
    """Whatever carries the name of an engine, as the flavours of TensorRT do."""

    @property
    def name(self) -> str:
        """The engine's name, as in --engine."""
        ...


class BuildOptions(Strict):
    """What can be asked of the build of a TensorRT engine.

    batch: smallest, likeliest and largest batch of the optimisation profile.
    workspace_bytes: limit of the scratch memory that a layer may ask for; None leaves it to TensorRT.
    compute_capabilities: GPUs that an engine of TensorRT for RTX is for, as "8.9"; empty means 8.0 and later.
    hardware_compatibility, version_compatible: as in TensorRT's builder; they cost speed.
    """

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

    def why_unsupported(self, engine: NamedEngine) -> str | None:
        """A clause that names the option which an engine does not have, or None.

        TensorRT for RTX ignores the hardware compatibility with a warning, and lacks the library that version
        compatibility needs; TensorRT itself always builds for the GPU at hand.
        """
        if engine.name == "tensorrt" and self.compute_capabilities:
            return "--compute-capability is for TensorRT for RTX: TensorRT builds for the GPU at hand"
        if engine.name == "tensorrt-rtx" and self.hardware_compatibility != "none":
            return "--hardware-compatibility is for TensorRT: TensorRT for RTX has --compute-capability"
        if engine.name == "tensorrt-rtx" and self.version_compatible:
            return "--version-compatible is for TensorRT: TensorRT for RTX has no lean runtime"
        return None


class MatrixProducts(Strict):
    """How many matrix products of one format the graph has, and how many of them were found in the engine."""

    graph: Annotated[int, Field(ge=0)]
    found: Annotated[int, Field(ge=0)]


class LayerCounts(Strict):
    """How many layers an engine has, by format and by type."""

    count: Annotated[int, Field(ge=0)]
    by_dtype: dict[str, int]
    by_type: dict[str, int]


class PluginUse(Strict):
    """Whether an engine holds the plugin's kernels for its `dec` operators, and why, or why not."""

    used: bool
    detail: str


class PlanEntry(Strict):
    """What the manifest says about a plan.

    compute_capabilities: the GPUs that it is for, as "8.9"; with `and_later`, newer ones too. gpu: the one that it was
    built on. precision: for each format, the graph's matrix products and how many of them were found in the engine.
    peak_memory_bytes: of the building process. plugin: what became of the `dec` operators, if the model has any.
    """

    file: str
    layers_file: str
    version: str
    cuda: str | None
    gpu: str | None
    compute_capabilities: Annotated[tuple[_Capability, ...], Field(min_length=1)]
    and_later: bool
    options: BuildOptions
    timing_cache: str | None
    precision: dict[str, MatrixProducts]
    layers: LayerCounts
    plugin: PluginUse | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_memory_bytes: int | None

    @property
    def files(self) -> tuple[str, str]:
        """The plan, and the list of the engine's layers."""
        return self.file, self.layers_file

    @property
    def capabilities(self) -> str:
        """The compute capabilities in words."""
        return ", ".join(self.compute_capabilities) + (" and later" if self.and_later else "")

    def takes_capability(self, capability: tuple[int, ...]) -> bool:
        """Whether a GPU of this compute capability, (major, minor), is among those that the plan is for."""
        meant = [tuple(map(int, text.split("."))) for text in self.compute_capabilities]
        return capability in meant or (self.and_later and capability >= min(meant))

    def bound_to_another(self, engine: NamedEngine, gpu: Gpu) -> bool:
        """Whether it runs on the GPU alone that it was built on, and `gpu` is another."""
        bound = engine.name == "tensorrt" and self.options.hardware_compatibility == "none"
        return bound and gpu.name != self.gpu
