"""The part of a manifest about TensorRT engines: the options of the build, and the facts read back from the engine.

This module holds only data; `engines.tensorrt` reads and builds plans.
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
    """An object with the name of an engine, such as a flavour of TensorRT."""

    @property
    def name(self) -> str:
        """The engine's name, as in --engine."""
        ...


class BuildOptions(Strict):
    """The options of the build of a TensorRT engine.

    batch: the smallest, the most frequent and the largest batch of the optimisation profile.
    workspace_bytes: the most scratch memory that a layer may use; None leaves the limit to TensorRT.
    compute_capabilities: the GPUs for which TensorRT for RTX builds, such as "8.9"; empty means 8.0 and later.
    hardware_compatibility, version_compatible: the options of these names of TensorRT's builder; both make the engine
    slower.
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
        """The compute capabilities as pairs (major, minor)."""
        return [(int(major), int(minor)) for major, minor in (c.split(".") for c in self.compute_capabilities)]

    def why_unsupported(self, engine: NamedEngine) -> str | None:
        """Return a clause that names an option which the engine does not support, or None when it supports all.

        TensorRT for RTX ignores the hardware compatibility with a warning, and lacks the library that version
        compatibility needs. TensorRT always builds for this machine's GPU.
        """
        if engine.name == "tensorrt" and self.compute_capabilities:
            return "--compute-capability is an option of TensorRT for RTX, and TensorRT builds for this machine's GPU"
        if engine.name == "tensorrt-rtx" and self.hardware_compatibility != "none":
            return "--hardware-compatibility is an option of TensorRT, and TensorRT for RTX has --compute-capability"
        if engine.name == "tensorrt-rtx" and self.version_compatible:
            return "--version-compatible is an option of TensorRT, and TensorRT for RTX has no lean runtime"
        return None


class MatrixProducts(Strict):
    """The number of matrix products of one format in the graph, and the number of them found in the engine."""

    graph: Annotated[int, Field(ge=0)]
    found: Annotated[int, Field(ge=0)]


class LayerCounts(Strict):
    """The number of layers of an engine, in all, by format and by type."""

    count: Annotated[int, Field(ge=0)]
    by_dtype: dict[str, int]
    by_type: dict[str, int]


class PluginUse(Strict):
    """Whether an engine holds the plugin's kernels for its `dec` operators, and the reason."""

    used: bool
    detail: str


class PlanEntry(Strict):
    """The manifest's entry for a plan.

    compute_capabilities: the compute capabilities of the GPUs for which it was built, such as "8.9"; with `and_later`,
    newer GPUs are included. gpu: the GPU on which it was built. precision: for each format, the number of matrix
    products in the graph and in the engine. peak_memory_bytes: the peak memory of the building process. plugin: whether
    the plugin computes the `dec` operators, or None for a model without such operators.
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
        """The names of the plan and of the list of the engine's layers."""
        return self.file, self.layers_file

    @property
    def capabilities(self) -> str:
        """The compute capabilities in words."""
        return ", ".join(self.compute_capabilities) + (" and later" if self.and_later else "")

    def takes_capability(self, capability: tuple[int, ...]) -> bool:
        """Return whether the plan was built for GPUs of this compute capability (major, minor)."""
        meant = [tuple(map(int, text.split("."))) for text in self.compute_capabilities]
        return capability in meant or (self.and_later and capability >= min(meant))

    def bound_to_another(self, engine: NamedEngine, gpu: Gpu) -> bool:
        """Return whether the plan runs only on the GPU on which it was built, and `gpu` is another."""
        bound = engine.name == "tensorrt" and self.options.hardware_compatibility == "none"
        return bound and gpu.name != self.gpu
