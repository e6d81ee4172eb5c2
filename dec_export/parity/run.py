"""Compare an engine with the float64 reference, beside the float32 reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dec_export.engines.base import Engine
from dec_export.engines.torch_engine import TorchEngine
from dec_export.errors import EngineError
from dec_export.images import ImageSet
from dec_export.onnx_export.export import phi_names
from dec_export.parity import gate
from dec_export.parity.amplification import amplification
from dec_export.parity.invariance import local_scale
from dec_export.parity.metrics import OutputParity, compare, invariance_error, top1_agreement
from dec_export.reference.model import DecModel, in_precision
from dec_export.reference.precision import unit_roundoff
from dec_export.reference.warp import Phi

SCHEMA_VERSION = 1
Outputs = dict[str, NDArray[Any]]
_REFERENCE_BATCH = 4
# Enough to show that samples do not mix; more would only cost memory.
_LARGEST_BATCH = 8
# Amplification is a property of the model on photographs, not of each photograph: a few show it.
_AMPLIFICATION_SAMPLES = 4


@dataclass(frozen=True)
class ParityReport:
    """What `parity.json` holds; `passed` is the gate's verdict."""

    content: dict[str, Any]

    @property
    def passed(self) -> bool:
        return bool(self.content["gate"] == "pass")


def summarise(reports: Sequence[ParityReport]) -> dict[str, Any]:
    """The content of a bundle's `parity.json`: the gate over all engines, and each engine's report."""
    return {
        "schema_version": SCHEMA_VERSION,
        "gate": "pass" if all(report.passed for report in reports) else "fail",
        "engines": {report.content["engine"]: report.content for report in reports},
    }


@dataclass(frozen=True)
class References:
    """The reference's outputs for a set of images, made once, used for every engine.

    same: those of the reference in the engines' precision, and unit_roundoff, by output, what that precision rounds by.
    """

    images: ImageSet
    fp64: Outputs
    fp32: Outputs
    same: Outputs
    unit_roundoff: dict[str, float]
    precision: dict[str, str]
    scaled: NDArray[np.float32]
    fp64_scaled: Outputs
    amplification: dict[str, dict[str, float]]


def run_references(
    model: DecModel,
    images: ImageSet,
    threads: int | None = None,
    *,
    precision: str = "fp32",
    solver_precision: str = "fp32",
) -> References:
    """Run the reference in float32, float64 and the precision that engines are to be judged in.

    `model` is left in float32.
    """
    fp32 = _in_batches(TorchEngine(model.float(), expose_phi=True, threads=threads), images.array)
    same = fp32
    if (precision, solver_precision) != ("fp32", "fp32"):
        narrow = in_precision(model, precision, solver_precision)
        same = _in_batches(TorchEngine(narrow, expose_phi=True, threads=threads), images.array)
    try:
        engine = TorchEngine(model.double(), expose_phi=True, threads=threads)
        fp64 = _in_batches(engine, images.array)
        scaled = local_scale(images.array)
        fp64_scaled = _in_batches(engine, scaled)
        few = {name: value[:_AMPLIFICATION_SAMPLES] for name, value in fp64.items()}
        gains = amplification(model, torch.from_numpy(images.array[:_AMPLIFICATION_SAMPLES]).double(), _phis(few))
    finally:
        model.float()
    roundoff = {name: unit_roundoff(solver_precision if name.startswith("phi_") else precision) for name in fp64}
    used = {"backbone": precision, "solver": solver_precision}
    return References(images, fp64, fp32, same, roundoff, used, scaled, fp64_scaled, gains)


def run_parity(references: References, engine: Engine) -> ParityReport:
    """Run the engine on the references' images, one by one and in a larger batch, and judge it by the gate."""
    batches = _batches(engine, len(references.images))
    by_batch = {batch: _run_engine(engine, references.images.array, references, batch) for batch in batches}
    outputs = by_batch[batches[0]]
    if any("logits" not in found for found in by_batch.values()):
        raise EngineError(f"The engine '{engine.name}' returned {', '.join(outputs) or 'nothing'}, but no logits.")
    scaled = _run_engine(engine, references.scaled, references, batches[0])
    tensors = _worst([_compare(found, references) for found in by_batch.values()])
    expected = [name for name in references.fp64 if engine.exposes_phi or not name.startswith("phi_")]
    failures = gate.failures(tensors, expected=expected) + _not_finite(scaled, references)
    content = {
        "schema_version": SCHEMA_VERSION,
        "engine": engine.name,
        "engine_details": engine.describe(),
        "precision": references.precision,
        "gate": "fail" if failures else "pass",
        "gate_rule": gate.RULE,
        "failures": failures,
        "samples": len(references.images),
        "images": {"source": references.images.source, "names": list(references.images.names)},
        "batch_sizes": sorted(by_batch),
        "outputs": {name: p.as_dict() for name, p in tensors.items() if not name.startswith("phi_")},
        "phi": {name: p.as_dict() for name, p in tensors.items() if name.startswith("phi_")},
        "top1_agreement": top1_agreement(outputs["logits"], references.fp64["logits"]),
        "top1_agreement_reference_fp32": top1_agreement(references.fp32["logits"], references.fp64["logits"]),
        "invariance": {
            "metric": "InvE",
            "reference": invariance_error(references.fp64["logits"], references.fp64_scaled["logits"]),
            "engine": invariance_error(outputs["logits"], scaled["logits"]),
        },
        "amplification": references.amplification,
    }
    return ParityReport(_json_safe(content))


def _worst(by_batch: Sequence[dict[str, OutputParity]]) -> dict[str, OutputParity]:
    """Every tensor that all batches have, at the batch size at which it is worst; NaN is worse than any number."""

    def badness(parity: OutputParity) -> float:
        return float(np.nan_to_num(np.max([parity.ratio, parity.typical_ratio]), nan=np.inf))

    shared = [name for name in by_batch[0] if all(name in parities for parities in by_batch)]
    return {name: max((parities[name] for parities in by_batch), key=badness) for name in shared}


def _not_finite(scaled: Outputs, references: References) -> list[str]:
    """A sentence for every output on the locally scaled images, and for the references, that has NaN or infinity."""
    found = [
        f"{name} holds NaN or infinity on the locally scaled images"
        for name, value in scaled.items()
        if not np.isfinite(value).all()
    ]
    gains = [gain for layer in references.amplification.values() for gain in layer.values()]
    if not np.isfinite(gains).all() or not all(np.isfinite(v).all() for v in references.fp64_scaled.values()):
        found.append("the float64 reference itself is not finite on these images")
    return found


def _batches(engine: Engine, samples: int) -> list[int]:
    """A small batch and a larger one, within what the engine takes."""
    largest = min(max(2, samples), _LARGEST_BATCH, engine.largest_batch or _LARGEST_BATCH)
    return sorted({engine.smallest_batch, max(engine.smallest_batch, largest)})


def _run_engine(engine: Engine, array: NDArray[np.float32], references: References, batch: int) -> Outputs:
    """The engine's outputs for all images, run `batch` at a time; images are repeated to fill the last batch."""
    missing = -len(array) % batch
    padded = np.concatenate([array, np.resize(array, (missing, *array.shape[1:]))]) if missing else array
    outputs = _in_batches(engine, padded, batch)
    for name, value in outputs.items():
        expected = references.fp64[name].shape[1:] if name in references.fp64 else value.shape[1:]
        if value.shape[1:] != expected:
            raise EngineError(f"The engine's output '{name}' has shape {value.shape}, expected (N, *{expected}).")
    return {name: value[: len(references.images)] for name, value in outputs.items()}


def _compare(outputs: Outputs, references: References) -> dict[str, OutputParity]:
    return {
        name: compare(
            outputs[name], references.fp32[name], truth, references.same[name], references.unit_roundoff[name]
        )
        for name, truth in references.fp64.items()
        if name in outputs
    }


def _in_batches(engine: Engine, images: NDArray[np.float32], batch: int = _REFERENCE_BATCH) -> Outputs:
    parts = [engine(images[start : start + batch]) for start in range(0, len(images), batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _phis(outputs: Outputs) -> list[Phi]:
    layers = sum(name.startswith("phi_x_") for name in outputs)
    axes = [torch.from_numpy(outputs[name]) for name in phi_names(layers)]
    return [Phi(x, y) for x, y in zip(axes[::2], axes[1::2], strict=True)]


def _json_safe(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null, and the gate has failed on them already."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
