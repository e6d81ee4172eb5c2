"""TensorRT engines with inner tensors as outputs. They are built again, because a plan has a fixed list of outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from dec_export.engines.tensorrt.build import build_plan
from dec_export.engines.tensorrt.engine import TensorRTEngine
from dec_export.engines.tensorrt.flavours import FLAVOURS, Flavour
from dec_export.engines.tensorrt.plan import PlanEntry
from dec_export.errors import EngineError
from dec_export.gpu import find_gpu
from dec_export.names import phi_names
from dec_export.onnx_export.tracing import inner_names, save, with_outputs

if TYPE_CHECKING:
    from dec_export.bundle.store import Bundle


def plan_of(bundle: Bundle, flavour: Flavour) -> PlanEntry:
    """Return the manifest's entry for the bundle's plan of a flavour. Raises EngineError when the bundle holds none."""
    for name, entry in bundle.manifest.plans.items():
        if name == flavour.name:
            return entry
    raise EngineError(f"The bundle '{bundle.path}' holds no engine '{flavour.name}': build it with --engine.")


def build_traced_plan(bundle: Bundle, name: str, folder: Path) -> PlanEntry:
    """Write a plan like the bundle's plan, with all tensors that `dec_export.names` names as outputs, into `folder`.

    Layers that TensorRT fuses across such a tensor in the bundle's plan are not fused in this one.
    """
    proto = onnx.load(bundle.onnx_path)
    traced = folder / bundle.onnx_path.name
    save(with_outputs(proto, inner_names(proto)), traced)
    options = plan_of(bundle, FLAVOURS[name]).options
    return build_plan(FLAVOURS[name], traced, folder, options, gpu=find_gpu())


def load_traced(bundle: Bundle, name: str, *, allow_host_code: bool = False) -> TensorRTEngine:
    """Load the engine of `build_traced_plan`, and delete its files."""
    with tempfile.TemporaryDirectory(prefix="dec-export-") as scratch:
        entry = build_traced_plan(bundle, name, Path(scratch))
        return TensorRTEngine(
            Path(scratch) / entry.file,
            FLAVOURS[name],
            entry,
            bundle.recipe.image_size,
            outputs=[*(output.name for output in bundle.manifest.outputs), *phi_names(bundle.recipe.layers)],
            allow_host_code=allow_host_code,
        )
