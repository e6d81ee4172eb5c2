"""Compare an engine with the float64 reference, beside the float32 reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dec_export.data.images import ImageSet
from dec_export.engines.base import Engine
from dec_export.engines.torch import TorchEngine
from dec_export.errors import EngineError
from dec_export.formats import Format
from dec_export.names import (
    computation_order,
    feature_name,
    is_map,
    is_output,
    map_name,
    of_solver,
    phi_names,
)
from dec_export.parity import gate
from dec_export.parity.measures import equivariance
from dec_export.parity.measures.amplification import amplification
from dec_export.parity.measures.histogram import error_histogram
from dec_export.parity.measures.invariance import InvarianceTerms, invariance_of, local_scale, local_scale_phi
from dec_export.parity.measures.labelled import LabelledImages, Scores, compare_scores, measure
from dec_export.parity.measures.residuals import residuals
from dec_export.parity.measures.trace import trace_of
from dec_export.parity.metrics import Array, OutputParity, compare
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.maps import to_map
from dec_export.reference.backbones.stages import assign_places, stage_count, visited_places
from dec_export.reference.model import DecModel, in_precision
from dec_export.reference.warp import Phi
from dec_export.tasks import task_named
from dec_export.tasks.measures import top1_agreement

SCHEMA_VERSION = 1
Outputs = dict[str, NDArray[Any]]
_REFERENCE_BATCH = 4
# Enough to show that samples do not mix; more would only cost memory.
_LARGEST_BATCH = 8
_LABELLED_BATCH = 25
# Of more images, inner tensors would show the same, and fill the memory.
_TRACED_IMAGES = 8
# Amplification is a property of the model on photographs, not of each photograph: a few show it.
_AMPLIFICATION_SAMPLES = 4
# Images whose logits a report keeps for its pictures.
SHOWN_IMAGES = 4


class Shown(NamedTuple):
    """An engine's logits on the first `SHOWN_IMAGES` images and on their locally scaled copies."""

    logits: NDArray[Any]
    logits_scaled: NDArray[Any]


@dataclass(frozen=True)
class ParityReport:
    """What `parity.json` holds; `passed` is the gate's verdict. shown: for pictures, and never in the JSON."""

    content: dict[str, Any]
    shown: Shown | None = field(default=None, compare=False, repr=False)

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

    Outputs hold the logits, the phis, and all that `onnx_export.names` names. same: those of the reference in the
    engines' precision, and unit_roundoff, by output, what that precision rounds by. scaled, phi: the locally scaled
    images and what scaled them; invariance: the metric's terms on them. labelled: images of known classes, if there
    are, and scores what the float32 reference makes of them. places: which solved phi each place of the model takes
    (-1 is the image, i the input of block or stage i). tap: the block whose feature map is an output. equivariance: of
    the maps of all blocks, if it is wanted; to_map makes a map of the features of a block.
    """

    recipe: Recipe
    images: ImageSet
    fp64: Outputs
    fp32: Outputs
    same: Outputs
    unit_roundoff: dict[str, float]
    precision: dict[str, str]
    scaled: NDArray[np.float32]
    phi: Phi
    fp64_scaled: NDArray[np.float64]
    invariance: InvarianceTerms
    amplification: dict[str, dict[str, float]]
    labelled: list[LabelledImages]
    scores: Scores | None
    places: dict[int, int]
    tap: int | None
    equivariance: equivariance.References | None
    to_map: Callable[[Tensor], Tensor]


def run_references(
    model: DecModel,
    images: ImageSet,
    threads: int | None = None,
    *,
    precision: str = "fp32",
    solver_precision: str = "fp32",
    labelled: Sequence[LabelledImages] = (),
    tap: int | None = None,
    layers: bool = False,
) -> References:
    """Run the reference in float32, float64 and the precision that engines are to be judged in.

    tap: the block or stage whose feature map is an output. layers: measure the equivariance of every block's map; with
    a tap it is measured anyway. `model` is left in float32.
    """
    recipe = model.recipe
    strength, seed = recipe.evaluation.strength, 0
    phi = local_scale_phi(len(images), seed, strength)
    scaled = local_scale(images.array, seed, strength)

    def terms(outputs: Outputs, outputs_scaled: Outputs) -> Array:
        return invariance_of(recipe.task, outputs["logits"], outputs_scaled["logits"], phi)

    few_images = images.array[: equivariance.IMAGES]
    moved = equivariance.move(few_images) if layers or tap is not None else {}
    as_map = partial(to_map, recipe.backbone, model.backbone)

    def equivariance_of(engine: Engine) -> equivariance.Equivariance:
        places = range(stage_count(recipe, model.backbone))
        return equivariance.measure(_maps(engine, as_map, places), few_images, moved) if moved else {}

    engine32 = TorchEngine(model.float(), tap=tap, inner=True, threads=threads)
    fp32 = _in_batches(engine32, images.array)
    terms32 = terms(fp32, _in_batches(engine32, scaled, traced=0))
    scores = _scores(engine32, recipe, labelled)
    same, terms_same, of_same = fp32, terms32, engine32
    if (precision, solver_precision) != ("fp32", "fp32"):
        of_same = TorchEngine(
            in_precision(model, Format(precision), Format(solver_precision)), tap=tap, inner=True, threads=threads
        )
        same = _in_batches(of_same, images.array)
        terms_same = terms(same, _in_batches(of_same, scaled, traced=0))
    equivariance_same = equivariance_of(of_same)
    try:
        engine = TorchEngine(model.double(), tap=tap, inner=True, threads=threads)
        fp64, fp64_scaled = _in_batches(engine, images.array), _in_batches(engine, scaled, traced=0)
        few = {name: value[:_AMPLIFICATION_SAMPLES] for name, value in fp64.items()}
        equivariance_fp64 = equivariance_of(engine)
        gains = amplification(model, torch.from_numpy(images.array[:_AMPLIFICATION_SAMPLES]).double(), _phis(few))
    finally:
        model.float()
    metric = task_named(recipe.task).metric
    invariance = InvarianceTerms(metric, seed, strength, terms(fp64, fp64_scaled), terms32, terms_same)
    return References(
        recipe=recipe,
        images=images,
        fp64=fp64,
        fp32=fp32,
        same=same,
        unit_roundoff={name: Format(solver_precision if of_solver(name) else precision).unit_roundoff for name in fp64},
        precision={"backbone": precision, "solver": solver_precision},
        scaled=scaled,
        phi=phi,
        fp64_scaled=fp64_scaled["logits"],
        invariance=invariance,
        amplification=gains,
        labelled=list(labelled),
        scores=scores,
        places=assign_places(recipe.augment_layer_id, visited_places(recipe, model.backbone), len(gains)),
        tap=tap,
        equivariance=equivariance.References(few_images, moved, equivariance_fp64, equivariance_same)
        if moved
        else None,
        to_map=as_map,
    )


def _maps(engine: Engine, as_map: Callable[[Tensor], Tensor], places: Sequence[int]) -> equivariance.Maps:
    """The maps that an engine shows of these blocks: the output for it, else the inner tensor."""
    batch = max(engine.smallest_batch, min(_REFERENCE_BATCH, engine.largest_batch or _REFERENCE_BATCH))

    def maps(images: NDArray[np.float32]) -> Mapping[int, Tensor]:
        outputs = _padded_batches(engine, images, batch, traced=len(images))
        shown = {place: outputs.get(map_name(place)) for place in places}
        inner = {place: outputs.get(feature_name(place)) for place in places}
        return {
            **{place: as_map(torch.from_numpy(value)) for place, value in inner.items() if value is not None},
            **{place: torch.from_numpy(value) for place, value in shown.items() if value is not None},
        }

    return maps


def run_parity(references: References, engine: Engine, traced: Engine | None = None) -> ParityReport:
    """Run the engine on the references' images, one by one and in a larger batch, and judge it by the gate.

    traced: an engine that is not judged, but shows inner tensors in its stead.
    """
    batches = _batches(engine, len(references.images))
    by_batch = {batch: _run_engine(engine, references.images.array, references, batch) for batch in batches}
    outputs = by_batch[batches[0]]
    if any("logits" not in found for found in by_batch.values()):
        raise EngineError(f"The engine '{engine.name}' returned {', '.join(outputs) or 'nothing'}, but no logits.")
    scaled = _run_engine(engine, references.scaled, references, batches[0], traced=0)
    tensors = _worst([_compare(found, references) for found in by_batch.values()])
    judged = {name: parity for name, parity in tensors.items() if is_output(name)}
    taps = [] if references.tap is None else [map_name(references.tap)]
    expected = ["logits", *taps, *(name for name in references.fp64 if engine.exposes_phi and name.startswith("phi_"))]
    invariance = references.invariance.judge(
        invariance_of(references.recipe.task, outputs["logits"], scaled["logits"], references.phi),
        gate.max_deviation(references.precision),
        gate.MAX_RATIO,
    )
    equivariant, equivariance_failures = _equivariance(references, engine, traced)
    failures = [
        *gate.failures(judged, expected=expected),
        *(_not_finite(scaled, references) or gate.invariance_failures(invariance)),
        *equivariance_failures,
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "engine": engine.name,
        "engine_details": engine.describe().as_dict(),
        "task": references.recipe.task,
        "precision": references.precision,
        "gate": "fail" if failures else "pass",
        "gate_rule": gate.RULE,
        "failures": failures,
        "samples": len(references.images),
        "images": {"source": references.images.source, "names": list(references.images.names)},
        "batch_sizes": sorted(by_batch),
        "outputs": {name: p.as_dict() for name, p in judged.items() if not name.startswith("phi_")},
        "phi": {name: p.as_dict() for name, p in judged.items() if name.startswith("phi_")},
        "top1_agreement": top1_agreement(outputs["logits"], references.fp64["logits"]),
        "top1_agreement_reference_fp32": top1_agreement(references.fp32["logits"], references.fp64["logits"]),
        "invariance": invariance.as_dict(),
        "equivariance": equivariant,
        "labelled": _labelled(engine, references),
        "amplification": references.amplification,
        **_inner_tensors(references, traced, outputs, tensors),
        "errors": error_histogram(outputs["logits"], references.fp32["logits"], references.fp64["logits"]),
    }
    # Copies, because a view would keep the logits of every image.
    shown = Shown(*(found["logits"][:SHOWN_IMAGES].copy() for found in (outputs, scaled)))
    return ParityReport(_json_safe(content), shown)


def _inner_tensors(
    references: References, traced: Engine | None, outputs: Outputs, tensors: dict[str, OutputParity]
) -> dict[str, Any]:
    """What the report says of the solver's iterates and of all tensors on the way."""
    if traced is not None:
        batch = _batches(traced, len(references.images))[0]
        outputs = _run_engine(traced, references.images.array, references, batch)
        tensors = _compare(outputs, references)
    trace = trace_of(tensors, computation_order(references.fp64))
    return {
        "solver": residuals(outputs, references.fp64),
        "trace": {**trace, "engine": "built anew to show its inner tensors" if traced else "the one that is judged"},
    }


def _equivariance(
    references: References, engine: Engine, traced: Engine | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """What the report says of the equivariance of feature maps, and a sentence for each that is not the reference's."""
    wanted = references.equivariance
    if wanted is None:
        return None, []

    def judged(shown: Engine) -> dict[str, Any]:
        maps = _maps(shown, references.to_map, sorted(wanted.fp64))
        found = equivariance.measure(maps, wanted.images, wanted.moved)
        return equivariance.judge(wanted, found, gate.max_deviation(references.precision), gate.MAX_RATIO)

    own = judged(engine)
    layers = own if traced is None else judged(traced) | own
    facts = {"images": len(wanted.images), "tap": references.tap, "actions": list(wanted.moved), "layers": layers}
    return facts, gate.equivariance_failures(own)


def _labelled(engine: Engine, references: References) -> dict[str, Any] | None:
    """Scores of the engine beside the reference's; None without labelled images."""
    engine_scores = _scores(engine, references.recipe, references.labelled)
    if engine_scores is None or references.scores is None:
        return None
    count = len(references.labelled[0].inputs)
    return compare_scores(references.recipe.task, references.scores, engine_scores, count)


def _scores(engine: Engine, recipe: Recipe, labelled: Sequence[LabelledImages]) -> Scores | None:
    if not labelled:
        return None
    batch = max(engine.smallest_batch, min(_LABELLED_BATCH, engine.largest_batch or _LABELLED_BATCH))

    def predict(images: NDArray[np.float32]) -> Array:
        return _padded_batches(engine, images, batch, traced=0)["logits"]

    return measure(predict, recipe.task, recipe.backbone.num_classes, labelled)


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
    if not np.isfinite(gains).all() or not np.isfinite(references.fp64_scaled).all():
        found.append("the float64 reference itself is not finite on these images")
    return found


def _batches(engine: Engine, samples: int) -> list[int]:
    """A small batch and a larger one, within what the engine takes."""
    largest = min(max(2, samples), _LARGEST_BATCH, engine.largest_batch or _LARGEST_BATCH)
    return sorted({engine.smallest_batch, max(engine.smallest_batch, largest)})


def _run_engine(
    engine: Engine, array: NDArray[np.float32], references: References, batch: int, traced: int = _TRACED_IMAGES
) -> Outputs:
    """The engine's outputs for all images, run `batch` at a time; images are repeated to fill the last batch."""
    outputs = _padded_batches(engine, array, batch, traced)
    for name, value in outputs.items():
        expected = references.fp64[name].shape[1:] if name in references.fp64 else value.shape[1:]
        if value.shape[1:] != expected:
            raise EngineError(f"The engine's output '{name}' has shape {value.shape}, expected (N, *{expected}).")
    return outputs


def _padded_batches(engine: Engine, array: NDArray[np.float32], batch: int, traced: int = _TRACED_IMAGES) -> Outputs:
    missing = -len(array) % batch
    padded = np.concatenate([array, np.resize(array, (missing, *array.shape[1:]))]) if missing else array
    return {name: value[: len(array)] for name, value in _in_batches(engine, padded, batch, traced).items()}


def _compare(outputs: Outputs, references: References) -> dict[str, OutputParity]:
    return {
        name: compare(
            outputs[name], references.fp32[name], truth, references.same[name], references.unit_roundoff[name]
        )
        for name, truth in references.fp64.items()
        # A solver that converges may end earlier in another format, with fewer iterates.
        if all(name in found for found in (outputs, references.fp32, references.same))
    }


def _in_batches(
    engine: Engine, images: NDArray[np.float32], batch: int = _REFERENCE_BATCH, traced: int = _TRACED_IMAGES
) -> Outputs:
    """Logits and phis of all images, and of the first `traced` all that the engine shows beside them."""
    parts: dict[str, list[NDArray[Any]]] = {}
    starts = range(0, len(images), batch)
    for start in starts:
        for name, value in engine(images[start : start + batch]).items():
            # Without inner tensors, nor are the maps of all images of use.
            if (is_output(name) and (traced or not is_map(name))) or start < traced:
                parts.setdefault(name, []).append(value)
    whole = {True: len(starts), False: len([start for start in starts if start < traced])}
    kept = {name: found for name, found in parts.items() if len(found) == whole[is_output(name)]}
    return {name: np.concatenate(found)[: None if is_output(name) else traced] for name, found in kept.items()}


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
