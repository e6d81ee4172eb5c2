"""`build`: from a recipe to a bundle, in the order of the house."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from safetensors import SafetensorError
from safetensors.torch import save_file

from dec_export import bundle as bundles
from dec_export.bundle import Bundle, Manifest, PreprocessingEntry
from dec_export.engines.base import load, resolve_engine
from dec_export.engines.batches import check_batches
from dec_export.errors import BundleError, DecExportError, EngineError
from dec_export.images import ImageSet, Preprocessing, load_images
from dec_export.lowering.model import lower
from dec_export.onnx_export.export import OPSET, export, save
from dec_export.parity.run import ParityReport, run_parity, run_references, summarise
from dec_export.recipe import Recipe
from dec_export.reference.checkpoint import WeightSource, load_reference, published_state_dict
from dec_export.reference.model import DecModel, preprocessing_of

SOLVERS = ("unroll", "loop", "plugin")
PRECISIONS = ("fp32", "fp16", "bf16")
_LIBRARIES = ("dec-export", "torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")

Progress = Callable[[str, "float | None"], None]


def build(
    recipe: Recipe | str | Path,
    *,
    out: str | Path,
    checkpoint: str | Path | None = None,
    strict_weights: bool = False,
    seed: int = 0,
    solver: str = "unroll",
    precision: str = "fp32",
    engines: Sequence[str] = ("auto",),
    images: str | Path | None = None,
    samples: int = 8,
    expose_phi: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a recipe's model, prove it, and leave a bundle at `out`.

    recipe: a Recipe, the path of a recipe file, or the name of a shipped one.
    checkpoint: weights in the published layout, as safetensors or a PyTorch state dict.
    engines: names to prove the model on; "auto" is what this machine can run, "none" proves nothing.
    images: folder of JPEG and PNG files for the proof; by default packaged photographs, else synthetic images.
    expose_phi: the solved phis become outputs.
    threads: of the engine and of the references, on the CPU; None leaves the choice to each.
    progress: called with the name of each step, and None when it begins or its seconds when it ends.

    The bundle is written also when the gate fails; its manifest says so. Raises DecExportError, and writes
    nothing, on anything a user can mend.
    """
    recipe = _resolve_recipe(recipe)
    _check_forms(solver, precision)
    names = resolve_engines([engines] if isinstance(engines, str) else engines)
    _check_counts(samples, seed)
    out = Path(out)
    bundles.check_target(out, force=force)
    steps = _Steps(progress)
    with steps("images and reference model"):
        photographs = load_images(preprocessing_of(recipe), samples, Path(images) if images else None)
        model, weights = load_reference(
            recipe, Path(checkpoint) if checkpoint else None, seed=seed, strict=strict_weights
        )
    with bundles.writing_bundle(out, force=force) as staging:
        _check_space(out.absolute().parent, model)
        with steps("lowering and ONNX export"):
            proto = export(lower(model), expose_phi=expose_phi)
        with steps("run at other batch sizes"):
            check_batches(proto, recipe.backbone.image_size)
        with steps("writing files"):
            (staging / bundles.RECIPE).write_text(recipe.to_yaml())
            save(proto, staging / bundles.MODEL)
            _save_weights(model, staging / bundles.WEIGHTS)
            manifest = _manifest(recipe, weights, proto, solver, precision, staging)
            _write_manifest(staging, manifest)
        if names:
            reports = _prove(Bundle(staging, manifest), model, photographs, names, threads, steps)
            _write_json(staging / bundles.PARITY, summarise(reports))
            _write_manifest(staging, _with_reports(manifest, reports, staging))
    return Bundle.load(out)


def prove(
    bundle: Bundle,
    engine: str = "auto",
    *,
    images: str | Path | None = None,
    samples: int = 8,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare an engine of a bundle with the float64 reference made from the bundle's own weights."""
    if engine == "none":
        raise EngineError("Parity needs an engine: 'none' proves nothing.")
    _check_counts(samples)
    name = resolve_engines([engine])[0]
    steps = _Steps(progress)
    with steps("images and reference model"):
        photographs = load_images(bundle.preprocessing, samples, Path(images) if images else None)
        model = bundle.reference()
    return _prove(bundle, model, photographs, [name], threads, steps)[0]


def _resolve_recipe(recipe: Recipe | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    is_name = isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")) and "#" not in recipe
    return Recipe.named(str(recipe)) if is_name else Recipe.load(recipe)


def resolve_engines(engines: Sequence[str]) -> list[str]:
    """Engine names with "auto" and "none" resolved; EngineError for anything that this version does not have."""
    names = list(dict.fromkeys(engines))
    if "none" in names:
        if len(names) > 1:
            raise EngineError("--engine none cannot be combined with other engines.")
        return []
    return list(dict.fromkeys(resolve_engine(name) for name in names))


def _prove(
    bundle: Bundle, model: DecModel, images: ImageSet, names: Sequence[str], threads: int | None, steps: _Steps
) -> list[ParityReport]:
    with steps("float32 and float64 references"):
        references = run_references(model, images, threads)
    reports = []
    for name in names:
        with steps(f"parity of {name}"):
            reports.append(run_parity(references, load(bundle, name, expose_phi=True, threads=threads)))
    return reports


def _check_forms(solver: str, precision: str) -> None:
    for option, value, known, ready in (
        ("solver", solver, SOLVERS, "unroll"),
        ("precision", precision, PRECISIONS, "fp32"),
    ):
        if value not in known:
            raise DecExportError(f"Unknown {option} '{value}', expected one of {', '.join(known)}.")
        if value != ready:
            raise DecExportError(f"--{option} {value} is not part of this version of dec-export: use {ready}.")


def _check_counts(samples: int, seed: int = 0) -> None:
    if samples < 1:
        raise DecExportError(f"samples must be at least 1, found {samples}.")
    if not 0 <= seed < 2**63:
        raise DecExportError(f"seed must be at least 0 and below 2^63, found {seed}.")


def _check_space(folder: Path, model: DecModel) -> None:
    parameters = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    # Once in the ONNX file, once as weights, and a tenth for constants and the report.
    bundles.check_free_space(folder, int(2.1 * parameters) + (1 << 20))


def _save_weights(model: DecModel, path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in published_state_dict(model).items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise BundleError(f"Cannot write the weights ({error}): free some space and build again.") from error
    path.chmod(0o666 & ~bundles.umask())


def _manifest(
    recipe: Recipe, weights: WeightSource, proto: onnx.ModelProto, solver: str, precision: str, folder: Path
) -> Manifest:
    preprocessing = preprocessing_of(recipe)
    return Manifest.model_validate(
        {
            "schema_version": bundles.SCHEMA_VERSION,
            "recipe": recipe,
            "weights": weights.as_dict(),
            "preprocessing": _preprocessing_entry(preprocessing),
            "inputs": [_tensor_entry(value) for value in proto.graph.input],
            "outputs": [_tensor_entry(value) for value in proto.graph.output],
            "solver": solver,
            "precision": precision,
            "opset": OPSET,
            "gate": "not run",
            "engines": {},
            "versions": _versions(),
            "files": bundles.describe_files(folder),
        }
    )


def _preprocessing_entry(preprocessing: Preprocessing) -> PreprocessingEntry:
    return PreprocessingEntry(**vars(preprocessing))


def _tensor_entry(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        "shape": tuple(dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _with_reports(manifest: Manifest, reports: Sequence[ParityReport], folder: Path) -> Manifest:
    files = {**manifest.files, bundles.PARITY: bundles.describe_file(folder / bundles.PARITY)}
    engines = {r.content["engine"]: {"gate": r.content["gate"], **r.content["engine_details"]} for r in reports}
    return manifest.model_copy(update={"gate": summarise(reports)["gate"], "engines": engines, "files": files})


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    _write_json(folder / bundles.MANIFEST, manifest.model_dump(mode="json"))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class _Steps:
    """Times the named steps and reports each one's beginning and end."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        report = self._progress or (lambda _name, _seconds: None)
        report(name, None)
        start = time.perf_counter()
        yield
        report(name, time.perf_counter() - start)
