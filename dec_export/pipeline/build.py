"""`build` turns a recipe into a bundle, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import onnx
from safetensors import SafetensorError
from safetensors.torch import save_file

from dec_export.bundle import store as bundles
from dec_export.bundle.manifest import EngineVerdict
from dec_export.bundle.plans import PlanEntry, PlanName
from dec_export.bundle.store import Bundle
from dec_export.engines.base import RunOptions
from dec_export.engines.batches import check_batches
from dec_export.engines.choice import EngineChoice, choose_engines, divide_plans
from dec_export.engines.registry import builder_of, engine_spec
from dec_export.errors import BundleError, DecExportError, EngineError, PrecisionError
from dec_export.files import umask, write_atomically
from dec_export.forms import Forms
from dec_export.gpu import Gpu, find_gpu
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import export, save
from dec_export.parity.references import References
from dec_export.parity.report import Report, summarise
from dec_export.parity.run import run_parity
from dec_export.pipeline.manifests import proven_manifest, unproven_manifest, with_file
from dec_export.pipeline.options import EngineOptions, ProofOptions, WeightOptions, check_forms, parse_forms
from dec_export.pipeline.proof import make_references, proof_images, start_engine, trusted_run_options
from dec_export.progress import step
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.stages import check_tap
from dec_export.reference.model import DecModel, preprocessing_of
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.fitting import published_state_dict
from dec_export.report.html import render_report

# An engine holds about 30 MB of kernels beside its weights.
_KERNEL_BYTES = 40 << 20

LeftOut = dict[str, EngineVerdict]


def build(
    recipe: Recipe | str | Path,
    *,
    out: str | Path,
    weights: WeightOptions = WeightOptions(),
    forms: Forms = Forms(),
    engines: EngineOptions = EngineOptions(),
    proof: ProofOptions = ProofOptions(),
    force: bool = False,
) -> Bundle:
    """Export a recipe's model, prove it, and leave a bundle at `out`.

    recipe: a Recipe, the path of a recipe file, or the name of a shipped recipe.
    weights: the source of the weights. forms: the form of the solver, the number formats, and further outputs.
    engines: the engines that are built and run. proof: the images of the proof. force: replace a bundle at `out`.

    `dec_export.progress.reporting` reports the steps to a caller.

    The bundle is also written when the gate fails, and its manifest says so. Raises DecExportError, and writes
    nothing, for every mistake that a user can correct.
    """
    recipe = _resolve_recipe(recipe)
    forms = parse_forms(**asdict(forms))  # This converts plain strings, and refuses unknown ones.
    check_forms(recipe, forms)
    gpu = find_gpu()
    names = [engines.names] if isinstance(engines.names, str) else engines.names
    choice = choose_engines(names, engines.options, gpu, engines.run.cpu_fallback)
    _check_options(choice, engines, weights, proof)
    out = Path(out)
    bundles.check_target(out, force=force)
    with step("images and reference model"):
        images = proof_images(recipe, preprocessing_of(recipe), proof)
        checkpoint = Path(weights.checkpoint) if weights.checkpoint else None
        second = Path(weights.canonicalizers) if weights.canonicalizers else None
        model, source = load_reference(
            recipe, checkpoint, canonicalizers=second, seed=weights.seed, strict=weights.strict
        )
        if forms.tap is not None:
            check_tap(recipe, model.backbone, forms.tap)
    with bundles.writing_bundle(out, force=force) as staging:
        _check_space(out.absolute().parent, model, len(choice.plans))
        proto = _write_model(staging, model, forms)
        plans, left_out = _build_plans(choice, staging, gpu, engines.timing_cache)
        provable, not_run = divide_plans(list(plans), gpu)
        left_out |= not_run
        manifest = unproven_manifest(staging, recipe, source, proto, forms, plans, left_out)
        bundles.write_manifest(staging, manifest)
        bundle, runnable = Bundle(staging, manifest), [*choice.runnable, *provable]
        if runnable:
            references = make_references(bundle, model, images, engines.run.threads)
            reports = _prove_all(bundle, references, runnable, choice.named, left_out, engines.run)
            _write_proof(bundle, references, reports, left_out)
    return Bundle.load(out)


def _resolve_recipe(recipe: Recipe | str | Path) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    is_name = isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")) and "#" not in recipe
    return Recipe.named(str(recipe)) if is_name else Recipe.load(recipe)


def _check_options(choice: EngineChoice, engines: EngineOptions, weights: WeightOptions, proof: ProofOptions) -> None:
    """Raise DecExportError for an option that is out of range or that this build would ignore."""
    if engines.timing_cache and not choice.keeps_timings:
        raise EngineError("Timings are kept for engines of TensorRT, and none will be built: leave --timing-cache out.")
    proof.check()
    weights.check()
    if proof.trace or proof.layers:
        raise DecExportError("A build does not trace engines or measure layers: prove the bundle with these options.")


def _check_space(folder: Path, model: DecModel, plans: int) -> None:
    parameters = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    # The ONNX file and the file of weights each hold the parameters. A tenth is added for constants, and a few MB for
    # the reports. Each engine holds the parameters and its kernels.
    needed = int(2.1 * parameters) + (4 << 20) + plans * (int(1.1 * parameters) + _KERNEL_BYTES)
    bundles.check_free_space(folder, needed)


def _write_model(staging: Path, model: DecModel, forms: Forms) -> onnx.ModelProto:
    """Write the recipe, the ONNX file and the weights; return the ONNX model."""
    with step("lowering and ONNX export"):
        proto = export(lower(model, forms.precision, forms.solver_precision), forms)
    with step("run at other batch sizes"):
        check_batches(proto, model.recipe.image_size)
    with step("writing files"):
        write_atomically(staging / bundles.RECIPE, model.recipe.to_yaml())
        save(proto, staging / bundles.MODEL)
        _save_weights(model, staging / bundles.WEIGHTS)
    return proto


def _save_weights(model: DecModel, path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in published_state_dict(model).items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise BundleError(f"Cannot write the weights ({error}): free some space and build again.") from error
    path.chmod(0o666 & ~umask())


def _build_plans(
    choice: EngineChoice, staging: Path, gpu: Gpu | None, timings: str | Path | None
) -> tuple[dict[PlanName, PlanEntry], LeftOut]:
    """Build the chosen TensorRT engines.

    When an engine fails that the user neither named nor gave options for, it is left out with the reason. A wrong
    precision of an engine is always an error.
    """
    plans: dict[PlanName, PlanEntry] = {}
    left_out = dict(choice.left_out)
    folder = Path(timings) if timings else None
    for name in choice.plans:
        builder = builder_of(name)
        try:
            with step(f"{builder.label} engine"):
                plans[cast("PlanName", name)] = builder.build(
                    staging / bundles.MODEL, staging, choice.options, gpu=gpu, timing_folder=folder
                )
        except PrecisionError:
            raise
        except EngineError as error:
            if name in choice.named or choice.explicit:
                raise
            left_out[name] = EngineVerdict(gate="not built", reason=str(error).rstrip("."))
    return plans, left_out


def _prove_all(
    bundle: Bundle,
    references: References,
    names: Sequence[str],
    required: Sequence[str],
    left_out: LeftOut,
    run: RunOptions,
) -> list[Report]:
    """Run every engine that was built. A GPU engine that is not required and does not start joins `left_out`."""
    reports = []
    for name in names:
        with step(f"parity of {name}"):
            try:
                engine = start_engine(bundle, name, trusted_run_options(run, name))
            except EngineError as error:
                if name in required or not engine_spec(name).needs_gpu:
                    raise
                left_out[name] = EngineVerdict(gate="not run", reason=str(error).rstrip("."))
                continue
            reports.append(run_parity(references, engine))
    return reports


def _write_proof(bundle: Bundle, references: References, reports: Sequence[Report], left_out: LeftOut) -> None:
    """Write the reports, as JSON and as a page, and the manifest that lists them."""
    folder = bundle.path
    bundles.write_json(folder / bundles.PARITY, summarise(reports).model_dump(mode="json"))
    manifest = proven_manifest(bundle.manifest, reports, left_out, folder)
    with step("report"):
        page = render_report(manifest, reports, references)
        write_atomically(folder / bundles.REPORT, page)
    bundles.write_manifest(folder, with_file(manifest, bundles.REPORT, folder))
