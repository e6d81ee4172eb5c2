"""`dec-export build`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # values of options, which Click converts, and of JSON

import click

from dec_export.cli.app import GATE_FAILED, Outcome, answers, note, show_progress
from dec_export.cli.listings import engine_listing, excluded_from_auto
from dec_export.cli.options import CPU_FALLBACK, IMAGES, PATH, SAMPLES, THREADS, note_samples
from dec_export.errors import DecExportError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from rich.console import RenderableType

    from dec_export.bundle.plans import BuildOptions
    from dec_export.bundle.store import Bundle
    from dec_export.parity.report import Report
    from dec_export.recipe.model import Recipe

_OPTION_OF = {
    "batch": "--batch",
    "workspace_bytes": "--workspace",
    "compute_capabilities": "--compute-capability",
    "hardware_compatibility": "--hardware-compatibility",
}


@dataclass(frozen=True)
class _Built:
    """A bundle that was built, and the seconds that the build took."""

    bundle: Bundle
    seconds: float


@click.command("build")
@click.option("--backbone", help="The name of a shipped recipe; `dec-export backbones` lists them.")
@click.option("--recipe", "recipe_file", help="A recipe file, or adapter_config.yaml#NAME from the published code.")
@click.option(
    "--task",
    type=click.Choice(["classification", "segmentation"]),
    help="The task of the model: a class for the image, or one for every pixel.",
)
@click.option(
    "--checkpoint",
    type=PATH,
    help="The trained weights: a safetensors file, a PyTorch state dict, or the folder of a published snapshot.",
)
@click.option(
    "--canonicalizer-checkpoint",
    type=PATH,
    help="The canonicalizers' weights if the checkpoint has none.  [default: NAME_surrogate.pth beside NAME.pth]",
)
@click.option("--strict-weights", is_flag=True, help="Refuse weights that do not come from a checkpoint.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="The seed of random weights."
)
@click.option(
    "--solver",
    default="unroll",
    show_default=True,
    help="The form of the solver in the ONNX graph: unroll, loop or plugin.",
)
@click.option(
    "--precision", default="fp32", show_default=True, help="The number format of the backbone: fp32, fp16 or bf16."
)
@click.option(
    "--solver-precision",
    default="fp32",
    show_default=True,
    help="The number format of the canonicalizers' convolutions: fp32 or fp16.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("auto",),
    show_default=True,
    help=f"An engine to build and prove: {engine_listing()}; none, which exports the model and runs no engine; or "
    f"auto, which selects every engine that this machine can build, except {excluded_from_auto()}. This option may be "
    "repeated.",
)
@click.option(
    "--batch",
    metavar="MIN,OPT,MAX",
    help="The smallest, the most frequent and the largest batch size of a TensorRT engine.  [default: 1,8,32]",
)
@click.option(
    "--workspace",
    type=click.IntRange(1, 1 << 20),
    metavar="MIB",
    help="The most scratch memory in MiB that one layer of a TensorRT engine may use.  [default: no limit]",
)
@click.option(
    "--compute-capability",
    multiple=True,
    help="The compute capability, such as 8.9, of a GPU for which tensorrt-rtx builds. This option may be repeated.  "
    "[default: 8.0 and later]",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["ampere-plus", "same-compute-capability"]),
    help="The GPUs that may run a tensorrt engine: GPUs of the Ampere generation and later, or GPUs with the compute "
    "capability of this machine's GPU.  [default: only this machine's GPU model]",
)
@click.option("--version-compatible", is_flag=True, help="Allow later versions of TensorRT to run a tensorrt engine.")
@click.option(
    "--timing-cache", type=PATH, help="The folder of TensorRT's timing caches.  [default: the user's cache folder]"
)
@CPU_FALLBACK
@IMAGES
@SAMPLES
@THREADS
@click.option("--expose-phi", is_flag=True, help="Add the solved phis to the model's outputs.")
@click.option(
    "--tap",
    type=click.IntRange(min=0),
    metavar="BLOCK",
    help="Add the feature map after this block or stage to the model's outputs.",
)
@click.option("--out", type=PATH, required=True, help="The folder of the bundle, which must not exist.")
@click.option("--force", is_flag=True, help="Replace the bundle at --out, if there is one.")
@answers
def command(
    backbone: str | None, recipe_file: str | None, task: str | None, out: Path, force: bool, **options: Any
) -> Outcome[_Built]:
    """Export a recipe's model, prove it and write a bundle.

    Exit 1 when the gate fails; the bundle is written nevertheless.
    """
    start = time.perf_counter()
    recipe = _choose_recipe(backbone, recipe_file, task)
    from dec_export.progress import reporting

    with reporting(show_progress):
        bundle = _build(recipe, out, force=force, **options)
    _note_facts(bundle, options["samples"])
    built = _Built(bundle, time.perf_counter() - start)
    return Outcome(built, _as_json, _render, GATE_FAILED if bundle.manifest.gate == "fail" else 0)


def _choose_recipe(backbone: str | None, recipe_file: str | None, task: str | None) -> Recipe:
    from dec_export.recipe.model import Recipe

    if backbone is None and recipe_file is None:
        raise DecExportError("Name a model with --backbone or a recipe file with --recipe.")
    recipe = Recipe.load(recipe_file, backbone=backbone) if recipe_file else Recipe.named(backbone or "", task)
    if task not in (None, recipe.task):
        raise DecExportError(f"The recipe '{recipe.name}' is for {recipe.task}, not for {task}: leave --task out.")
    return recipe


def _build(recipe: Recipe, out: Path, *, force: bool, **options: Any) -> Bundle:
    from dec_export.engines.base import RunOptions
    from dec_export.pipeline import build as pipeline
    from dec_export.pipeline.options import EngineOptions, ProofOptions, WeightOptions, parse_forms

    build_options = _build_options(options)
    forms = parse_forms(
        options["solver"],
        options["precision"],
        options["solver_precision"],
        tap=options["tap"],
        expose_phi=options["expose_phi"],
    )
    run = RunOptions(threads=options["threads"], cpu_fallback=options["cpu_fallback"])
    return pipeline.build(
        recipe,
        out=out,
        weights=WeightOptions(
            options["checkpoint"],
            options["strict_weights"],
            options["seed"],
            canonicalizers=options["canonicalizer_checkpoint"],
        ),
        forms=forms,
        engines=EngineOptions(options["engines"], build_options, options["timing_cache"], run),
        proof=ProofOptions(options["images"], options["samples"]),
        force=force,
    )


def _build_options(options: Mapping[str, Any]) -> BuildOptions | None:
    """Return the options of TensorRT engines that the user gave, or None when there are none."""
    asked = {
        "batch": _parse_batch(options["batch"]),
        "workspace_bytes": options["workspace"] and options["workspace"] << 20,
        "compute_capabilities": options["compute_capability"],
        "hardware_compatibility": options["hardware_compatibility"],
        "version_compatible": options["version_compatible"],
    }
    given = {name: value for name, value in asked.items() if value}
    if not given:
        return None
    from pydantic import ValidationError

    from dec_export.bundle.plans import BuildOptions

    try:
        return BuildOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = _OPTION_OF[str(first["loc"][0])] if first["loc"] else "--batch"
        raise DecExportError(f"{option}: {_expected_and_found(first)}.") from error


def _expected_and_found(error: ErrorDetails) -> str:
    """Return a clause that says what an option should have been, and what was found.

    The messages of dec-export's validators say both; those of pydantic's validators say only what was expected.
    """
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    return f"{error['msg'].replace('Input should be', 'expected a value')}, found {error['input']}"


def _parse_batch(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise DecExportError(f"--batch expects MIN,OPT,MAX as in 1,8,32, found '{text}'.")
    return tuple(map(int, parts))


def _note_facts(bundle: Bundle, samples: int) -> None:
    """Print where the weights came from, which engines were left out, and whether there were too few images."""
    note(bundle.manifest.weights.detail)
    for name, verdict in bundle.manifest.engines.items():
        if verdict.reason is not None:
            note(f"{name}: {verdict.gate}: {verdict.reason}.")
    for report in _reports(bundle):
        note_samples(report.samples, samples)


def _reports(bundle: Bundle) -> list[Report]:
    """Return the proof of every engine that was run."""
    from dec_export.parity.report import summary_of

    summary = summary_of(bundle)
    return [] if summary is None else list(summary.engines.values())


def _as_json(built: _Built) -> Mapping[str, Any]:
    manifest = built.bundle.manifest.dump()
    shown = {key: manifest[key] for key in ("files", "gate", "weights", "engines", "plans")}
    return {
        "out": str(built.bundle.path),
        **shown,
        "seconds": round(built.seconds, 2),
        "parity": built.bundle.parity,
    }


def _render(built: _Built) -> RenderableType:
    from rich.console import Group

    from dec_export.report import tables

    bundle, reports = built.bundle, _reports(built.bundle)
    parity_file = f"; report in {bundle.path}/parity.html" if reports else ""
    return Group(
        *map(tables.parity, reports),
        *(tables.plan(name, plan) for name, plan in bundle.manifest.plans.items()),
        f"Bundle in {bundle.path} ({built.seconds:.0f} s){parity_file}",
    )
