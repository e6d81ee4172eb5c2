"""`build`: from a recipe to a bundle, in the order of the house."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from safetensors import SafetensorError
from safetensors.torch import save_file

from dec_export.bundle import store as bundles
from dec_export.bundle.store import Bundle, Manifest, PreprocessingEntry
from dec_export.data.images import ImageSet, Preprocessing
from dec_export.engines.base import CPU_ENGINES, CUDA_ENGINE, TENSORRT_ENGINES, load
from dec_export.engines.batches import check_batches
from dec_export.engines.choice import EngineChoice, choose_engines, divide_plans
from dec_export.engines.tensorrt.build import build_plan
from dec_export.engines.tensorrt.flavours import FLAVOURS
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.engines.tensorrt.plan import PlanEntry
from dec_export.engines.tensorrt.traced import load_traced
from dec_export.errors import BundleError, DecExportError, EngineError, PrecisionError
from dec_export.files import check_new_file, write_new_file
from dec_export.formats import Format
from dec_export.forms import Forms
from dec_export.gpu import Gpu, find_gpu
from dec_export.libraries import installed_versions
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import OPSET, export, save
from dec_export.parity.inputs import LabelledImages
from dec_export.parity.measures.labelled import evaluation_images, labelled_images
from dec_export.parity.references import References, run_references
from dec_export.parity.report import Report, summarise
from dec_export.parity.run import run_parity
from dec_export.parity.runs import ReferenceOptions
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.insertion import check_tap
from dec_export.reference.model import DecModel, preprocessing_of
from dec_export.reference.precision import check_precision
from dec_export.reference.weights.checkpoint import WeightSource, load_reference, published_state_dict
from dec_export.report.html import render_report

SOLVERS = ("unroll", "loop", "plugin")
# An engine holds about 30 MB of kernels beside its weights.
_KERNEL_BYTES = 40 << 20

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
    solver_precision: str = "fp32",
    engines: Sequence[str] = ("auto",),
    engine_options: BuildOptions | None = None,
    timing_cache: str | Path | None = None,
    cpu_fallback: bool = False,
    images: str | Path | None = None,
    samples: int = 8,
    expose_phi: bool = False,
    tap: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a recipe's model, prove it, and leave a bundle at `out`.

    recipe: a Recipe, the path of a recipe file, or the name of a shipped one.
    checkpoint: weights in the published layout, as safetensors or a PyTorch state dict.
    solver: "unroll" writes its iterations one after another; "loop" as an ONNX Loop, in which each sample ends at the
    tolerance of 1e-6; "plugin" as the operators of domain `dec`, which TensorRT runs as fused kernels and every other
    runtime as the standard operators in their bodies. The function is the same.
    precision, solver_precision: formats of the backbone ("fp32", "fp16", "bf16") and of the canonicalizers'
    convolutions ("fp32", "fp16"); all else is float32.
    engines: names to build and to prove the model on; "auto" is what this machine can, "none" proves nothing. What
    was left out, and why, is in the manifest.
    engine_options, timing_cache: of TensorRT engines; the folder of timings is the user's cache folder by default.
    cpu_fallback: lets ONNX Runtime's CUDA provider give way to its CPU provider.
    images: folder of JPEG and PNG files for the proof; by default packaged photographs, else synthetic images.
    expose_phi: the solved phis become outputs.
    tap: a block or stage, whose feature map becomes an output, `feature_map_{tap}`; how it follows turns, flips and
    changes of scale of the image is proved too.
    threads: of the engine and of the references, on the CPU; None leaves the choice to each.
    progress: called with the name of each step, and None when it begins or its seconds when it ends.

    The bundle is written also when the gate fails; its manifest says so. Raises DecExportError, and writes
    nothing, on anything a user can mend.
    """
    recipe = _resolve_recipe(recipe)
    _check_solver(solver)
    check_precision(precision, solver_precision)
    _check_forms(recipe, solver, solver_precision, expose_phi)
    gpu = find_gpu()
    choice = choose_engines([engines] if isinstance(engines, str) else engines, engine_options, gpu, cpu_fallback)
    if timing_cache and "tensorrt" not in choice.plans:
        raise EngineError("Timings are kept for engines of TensorRT, and none will be built: leave --timing-cache out.")
    _check_counts(samples, seed)
    out = Path(out)
    bundles.check_target(out, force=force)
    steps = _Steps(progress)
    with steps("images and reference model"):
        proof = _proof_images(recipe, preprocessing_of(recipe), samples, images)
        model, weights = load_reference(
            recipe, Path(checkpoint) if checkpoint else None, seed=seed, strict=strict_weights
        )
        if tap is not None:
            check_tap(recipe, model.backbone, tap)
    with bundles.writing_bundle(out, force=force) as staging:
        _check_space(out.absolute().parent, model, len(choice.plans))
        with steps("lowering and ONNX export"):
            proto = export(lower(model, precision, solver_precision), solver=solver, expose_phi=expose_phi, tap=tap)
        with steps("run at other batch sizes"):
            check_batches(proto, recipe.backbone.image_size)
        with steps("writing files"):
            (staging / bundles.RECIPE).write_text(recipe.to_yaml())
            save(proto, staging / bundles.MODEL)
            _save_weights(model, staging / bundles.WEIGHTS)
        plans, left_out = _build_plans(choice, staging, gpu, timing_cache, steps)
        provable, not_run = divide_plans(list(plans), gpu)
        left_out |= not_run
        forms = {"solver": solver, "precision": precision, "solver_precision": solver_precision}
        manifest = _manifest(recipe, weights, proto, forms, plans, left_out, staging)
        _write_manifest(staging, manifest)
        runnable = [*choice.runnable, *provable]
        if runnable:
            bundle = Bundle(staging, manifest)
            references = _references(bundle, model, proof, threads, steps)
            reports = _prove_all(bundle, references, runnable, choice.named, left_out, threads, cpu_fallback, steps)
            _write_json(staging / bundles.PARITY, summarise(reports).model_dump(mode="json"))
            manifest = _with_reports(manifest, reports, left_out, staging)
            with steps("report"):
                page = render_report(manifest, reports, references)
                (staging / bundles.REPORT).write_text(page, encoding="utf-8", newline="\n")
            _write_manifest(staging, _with_file(manifest, bundles.REPORT, staging))
    return Bundle.load(out)


def _build_plans(
    choice: EngineChoice, staging: Path, gpu: Gpu | None, timings: str | Path | None, steps: _Steps
) -> tuple[dict[str, PlanEntry], dict[str, dict[str, str]]]:
    """Build the chosen TensorRT engines.

    One that nobody named, or gave options for, may fail and is then left out, with the reason; but not for its
    precision, which is an error however the engine came to be built.
    """
    plans, left_out = {}, dict(choice.left_out)
    for name in choice.plans:
        try:
            plans[name] = _build_plan(name, staging, choice.options, gpu, timings, steps)
        except PrecisionError:
            raise
        except EngineError as error:
            if name in choice.named or choice.explicit:
                raise
            left_out[name] = {"gate": "not built", "reason": str(error).rstrip(".")}
    return plans, left_out


def _build_plan(
    name: str, staging: Path, options: BuildOptions, gpu: Gpu | None, timings: str | Path | None, steps: _Steps
) -> PlanEntry:
    step = f"{FLAVOURS[name].label} engine"
    with steps(step):
        return build_plan(
            FLAVOURS[name],
            staging / bundles.MODEL,
            staging,
            options,
            gpu=gpu,
            timing_folder=Path(timings) if timings else None,
            progress=lambda detail: steps.tell(f"{step}: {detail}"),
        )


def prove(
    bundle: Bundle,
    engine: str = "auto",
    *,
    cpu_fallback: bool = False,
    allow_host_code: bool = False,
    images: str | Path | None = None,
    samples: int = 8,
    html: str | Path | None = None,
    force: bool = False,
    threads: int | None = None,
    trace: bool = False,
    layers: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compare an engine of a bundle with the float64 reference made from the bundle's own weights.

    trace: of a TensorRT engine, too, compare every inner tensor; one that shows them is built for that, beside the
    bundle's own, which is judged.
    layers: measure how the feature map of every block follows turns, flips and changes of scale of the image; of a
    TensorRT engine, by one built for that, too.
    html: file for the report as a page, like the bundle's own; one that exists is overwritten only with `force`.
    """
    if engine == "none":
        raise EngineError("Parity needs an engine: 'none' proves nothing.")
    _check_counts(samples)
    if html is not None:
        check_new_file(Path(html), force=force, option="--html")
        if Path(html).resolve().parent == bundle.path.resolve():
            raise DecExportError(f"'{html}' lies in the bundle, whose files have hashes: choose another --html.")
    steps = _Steps(progress)
    # First, because an engine that cannot run should say so at once.
    loaded = load(
        bundle,
        engine,
        inner=True,
        threads=threads,
        cpu_fallback=cpu_fallback,
        allow_host_code=allow_host_code,
    )
    traced = None
    if (trace or layers) and loaded.name in TENSORRT_ENGINES:
        step = f"{loaded.name} engine that shows its inner tensors"
        with steps(step):
            traced = load_traced(
                bundle,
                loaded.name,
                allow_host_code=allow_host_code,
                progress=lambda detail: steps.tell(f"{step}: {detail}"),
            )
    with steps("images and reference model"):
        proof = _proof_images(bundle.recipe, bundle.preprocessing, samples, images)
        model = bundle.reference()
    references = _references(bundle, model, proof, threads, steps, layers=layers)
    with steps(f"parity of {loaded.name}"):
        report = run_parity(references, loaded, traced)
    if html is not None:
        with steps("report"):
            page = render_report(bundle.manifest, [report], references)
            write_new_file(Path(html), page, force=force, option="--html")
    return report


def _resolve_recipe(recipe: Recipe | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    is_name = isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")) and "#" not in recipe
    return Recipe.named(str(recipe)) if is_name else Recipe.load(recipe)


def _prove_all(
    bundle: Bundle,
    references: References,
    names: Sequence[str],
    required: Sequence[str],
    left_out: dict[str, dict[str, str]],
    threads: int | None,
    cpu_fallback: bool,
    steps: _Steps,
) -> list[Report]:
    """Run what was built; a GPU engine that is not required may not start, and joins `left_out` then."""
    reports = []
    for name in names:
        with steps(f"parity of {name}"):
            try:
                # These plans were built here, a moment ago.
                engine = load(
                    bundle,
                    name,
                    inner=True,
                    threads=threads,
                    cpu_fallback=cpu_fallback and name == CUDA_ENGINE,
                    allow_host_code=True,
                )
            except EngineError as error:
                if name in required or name in CPU_ENGINES:
                    raise
                left_out[name] = {"gate": "not run", "reason": str(error).rstrip(".")}
                continue
            reports.append(run_parity(references, engine))
    return reports


class _ProofImages(NamedTuple):
    """What is proved on, and, when the recipe's own data are, what has labels."""

    images: ImageSet
    labelled: list[LabelledImages]


def _proof_images(
    recipe: Recipe, preprocessing: Preprocessing, samples: int, folder: str | Path | None
) -> _ProofImages:
    images = evaluation_images(recipe, preprocessing, samples, Path(folder) if folder else None)
    return _ProofImages(images, [] if folder else labelled_images(recipe, preprocessing))


def _references(
    bundle: Bundle,
    model: DecModel,
    proof: _ProofImages,
    threads: int | None,
    steps: _Steps,
    *,
    layers: bool = False,
) -> References:
    with steps("float32 and float64 references"):
        forms = Forms(
            precision=Format(bundle.manifest.precision),
            solver_precision=Format(bundle.manifest.solver_precision),
            tap=bundle.tap,
        )
        return run_references(model, proof.images, ReferenceOptions(forms, threads, proof.labelled, layers))


def _check_solver(solver: str) -> None:
    if solver not in SOLVERS:
        raise DecExportError(f"Unknown solver '{solver}', expected one of {', '.join(SOLVERS)}.")


def _check_forms(recipe: Recipe, solver: str, solver_precision: str, expose_phi: bool) -> None:
    """Raise DecExportError for what only a canonicalizer has, asked of a model without one."""
    asked = {
        "--solver": solver != "unroll",
        "--solver-precision": solver_precision != "fp32",
        "--expose-phi": expose_phi,
    }
    if recipe.canonicalizer is None and any(asked.values()):
        option = next(name for name, value in asked.items() if value)
        raise DecExportError(f"The recipe '{recipe.name}' has no canonicalizer, which {option} is for: leave it out.")


def _check_counts(samples: int, seed: int = 0) -> None:
    if samples < 1:
        raise DecExportError(f"samples must be at least 1, found {samples}.")
    if not 0 <= seed < 2**63:
        raise DecExportError(f"seed must be at least 0 and below 2^63, found {seed}.")


def _check_space(folder: Path, model: DecModel, plans: int) -> None:
    parameters = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    # Once in the ONNX file, once as weights, a tenth for constants, and the reports; engines add their kernels.
    needed = int(2.1 * parameters) + (4 << 20) + plans * (int(1.1 * parameters) + _KERNEL_BYTES)
    bundles.check_free_space(folder, needed)


def _save_weights(model: DecModel, path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in published_state_dict(model).items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise BundleError(f"Cannot write the weights ({error}): free some space and build again.") from error
    path.chmod(0o666 & ~bundles.umask())


def _manifest(
    recipe: Recipe,
    weights: WeightSource,
    proto: onnx.ModelProto,
    forms: dict[str, str],
    plans: dict[str, PlanEntry],
    left_out: dict[str, dict[str, str]],
    folder: Path,
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
            **forms,
            "opset": OPSET,
            "gate": "not run",
            "engines": left_out,
            "plans": plans,
            "versions": {"python": platform.python_version(), **installed_versions()},
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


def _with_reports(
    manifest: Manifest, reports: Sequence[Report], left_out: dict[str, dict[str, str]], folder: Path
) -> Manifest:
    proved = {report.engine: {"gate": report.gate, **report.engine_details} for report in reports}
    engines = {**proved, **left_out}
    judged = manifest.model_copy(update={"gate": summarise(reports).gate, "engines": engines})
    return _with_file(judged, bundles.PARITY, folder)


def _with_file(manifest: Manifest, name: str, folder: Path) -> Manifest:
    return manifest.model_copy(update={"files": {**manifest.files, name: bundles.describe_file(folder / name)}})


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    _write_json(folder / bundles.MANIFEST, manifest.model_dump(mode="json"))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class _Steps:
    """Times the named steps and reports each one's beginning and end."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def tell(self, detail: str) -> None:
        """Report what a long step is doing."""
        if self._progress:
            self._progress(detail, None)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        report = self._progress or (lambda _name, _seconds: None)
        report(name, None)
        start = time.perf_counter()
        yield
        report(name, time.perf_counter() - start)
