"""The specifications of the two flavours of TensorRT. The code that runs and builds is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dec_export.engines.spec import Availability, EngineSpec, unavailable, works
from dec_export.engines.tensorrt.flavours import TENSORRT, TENSORRT_RTX, Flavour, why_missing
from dec_export.gpu import Gpu, find_gpu, why_no_gpu
from dec_export.libraries import version_of_package
from dec_export.names import LOGITS

if TYPE_CHECKING:
    from pathlib import Path

    from dec_export.bundle.store import Bundle
    from dec_export.engines.base import RunOptions, Shown
    from dec_export.engines.tensorrt.engine import TensorRTEngine
    from dec_export.engines.tensorrt.options import BuildOptions
    from dec_export.engines.tensorrt.plan import PlanEntry


@dataclass(frozen=True)
class TensorRTBuilder:
    """The builder of plans of one flavour."""

    flavour: Flavour

    @property
    def label(self) -> str:
        return self.flavour.label

    @property
    def keeps_timings(self) -> bool:
        """Whether a build measures timings; TensorRT for RTX measures none."""
        return self.flavour is TENSORRT

    def why_unsupported(self, options: BuildOptions) -> str | None:
        """Return a clause that names an option which the flavour does not support, or None."""
        return options.why_unsupported(self.flavour)

    def build(
        self,
        onnx_path: Path,
        folder: Path,
        options: BuildOptions,
        *,
        gpu: Gpu | None,
        timing_folder: Path | None = None,
    ) -> PlanEntry:
        """Write the plan of an ONNX file, as `tensorrt.build.build_plan` does."""
        from dec_export.engines.tensorrt.build import build_plan

        return build_plan(self.flavour, onnx_path, folder, options, gpu=gpu, timing_folder=timing_folder)

    def load_traced(self, bundle: Bundle, options: RunOptions) -> TensorRTEngine:
        """Build the bundle's engine again with all inner tensors as outputs, and load it. No file remains."""
        from dec_export.engines.tensorrt.traced import load_traced

        return load_traced(bundle, self.flavour.name, allow_host_code=options.allow_host_code)


def _probe(flavour: Flavour, gpu: Gpu | None) -> Availability:
    reason = why_missing(flavour)
    if reason:
        return unavailable(reason)
    version = f"{flavour.label} {version_of_package(flavour.module)}"
    if gpu is not None:
        return works(f"{version}, on {gpu.name}")
    if flavour.builds_without_gpu:
        return Availability(True, False, f"{version}; it builds without a GPU, but cannot run, because {why_no_gpu()}")
    return unavailable(f"{version} builds for this machine's GPU, and {why_no_gpu()}")


def _load(flavour: Flavour, bundle: Bundle, options: RunOptions, _: Shown) -> TensorRTEngine:
    """Load the bundle's plan, whose outputs are those with which it was built."""
    from dec_export.engines.tensorrt.engine import TensorRTEngine
    from dec_export.engines.tensorrt.traced import plan_of

    entry = plan_of(bundle, flavour)
    bundle.verify(entry.file)
    return TensorRTEngine(
        bundle.path / entry.file,
        flavour,
        entry,
        bundle.recipe.image_size,
        outputs=[output.name for output in bundle.manifest.outputs],
        allow_host_code=options.allow_host_code,
    )


def _load_onnx(flavour: Flavour, bundle: Bundle, path: Path, _: RunOptions) -> TensorRTEngine:
    """Build a plan of another ONNX file beside it, with the options of the bundle's plan, and load it.

    The code in this plan is trusted, because it was built here.
    """
    from dec_export.engines.tensorrt.build import build_plan
    from dec_export.engines.tensorrt.engine import TensorRTEngine
    from dec_export.engines.tensorrt.traced import plan_of

    options = plan_of(bundle, flavour).options
    entry = build_plan(flavour, path, path.parent, options, gpu=find_gpu())
    size = bundle.recipe.image_size
    return TensorRTEngine(path.parent / entry.file, flavour, entry, size, [LOGITS], allow_host_code=True)


def _spec(flavour: Flavour, preference: int, summary: str) -> EngineSpec:
    return EngineSpec(
        name=flavour.name,
        summary=summary,
        preference=preference,
        needs_gpu=True,
        package=flavour.module,
        probe=partial(_probe, flavour),
        load=partial(_load, flavour),
        load_onnx=partial(_load_onnx, flavour),
        build=TensorRTBuilder(flavour),
    )


SPECS = (
    _spec(TENSORRT, 10, "TensorRT on a GPU, for which the engine is built"),
    _spec(TENSORRT_RTX, 20, "TensorRT for RTX on a GPU, with an engine that any machine can build"),
)
