"""The content of the manifest that a build writes: before the proof, and after it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from dec_export.bundle.manifest import SCHEMA_VERSION, EngineVerdict, Manifest, TensorEntry
from dec_export.bundle.plans import PlanEntry, PlanName
from dec_export.bundle.store import PARITY, describe_file, describe_files
from dec_export.engines.registry import libraries
from dec_export.forms import Forms
from dec_export.libraries import installed_versions
from dec_export.onnx_export.tracing import OPSET
from dec_export.parity.report import Report
from dec_export.recipe.model import Recipe
from dec_export.reference.model import preprocessing_of
from dec_export.reference.weights.source import WeightSource


def unproven_manifest(
    folder: Path,
    recipe: Recipe,
    weights: WeightSource,
    proto: onnx.ModelProto,
    forms: Forms,
    plans: Mapping[PlanName, PlanEntry],
    left_out: Mapping[str, EngineVerdict],
) -> Manifest:
    """Return the manifest of the files in `folder` before any engine was run.

    proto: the ONNX model in the folder. left_out: the reason for each engine that will not be run.
    """
    return Manifest(
        schema_version=SCHEMA_VERSION,
        recipe=recipe,
        weights=weights,
        preprocessing=preprocessing_of(recipe),
        inputs=tuple(map(_tensor_entry, proto.graph.input)),
        outputs=tuple(map(_tensor_entry, proto.graph.output)),
        solver=forms.solver,
        precision=forms.precision,
        solver_precision=forms.solver_precision,
        opset=OPSET,
        gate="not run",
        engines=dict(left_out),
        plans=dict(plans),
        versions={"python": platform.python_version(), **installed_versions(libraries())},
        files=describe_files(folder),
    )


def proven_manifest(
    manifest: Manifest, reports: Sequence[Report], left_out: Mapping[str, EngineVerdict], folder: Path
) -> Manifest:
    """Return the manifest with the verdict on every engine, and with the file of the reports."""
    gate = "pass" if all(report.passed for report in reports) else "fail"
    engines = {**dict(map(_verdict, reports)), **left_out}
    return with_file(manifest.model_copy(update={"gate": gate, "engines": engines}), PARITY, folder)


def with_file(manifest: Manifest, name: str, folder: Path) -> Manifest:
    """Return the manifest with the size and the hash of one more file in `folder`."""
    return manifest.model_copy(update={"files": {**manifest.files, name: describe_file(folder / name)}})


def _verdict(report: Report) -> tuple[str, EngineVerdict]:
    return report.engine, EngineVerdict(gate=report.gate, details=report.engine_details)


def _tensor_entry(value: onnx.ValueInfoProto) -> TensorEntry:
    tensor = value.type.tensor_type
    return TensorEntry(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=tuple(dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim),
    )
