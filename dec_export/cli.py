"""The command line: parse, call the API, render. Exit 0: done; 1: the gate failed; 2: a sentence says why not."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dec_export import __version__
from dec_export.errors import DecExportError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dec_export.recipe import Recipe

GATE_FAILED, CANNOT_RUN = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dec-export")
def main() -> None:
    """Export Deep Equilibrium Canonicalizer models, prove them, and bundle them for serving."""
    # Ends like an interrupt does, so that a half-written bundle is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _command(function: Callable[..., Any]) -> Callable[..., None]:
    """Add --json and -v, print errors of users as one sentence, and turn the result into output and exit code.

    `function` returns (facts, renderer, exit code): the facts go to stdout as JSON, or rendered.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
    @click.option("-v", "--verbose", is_flag=True, help="Log on stderr what the libraries say.")
    @wraps(function)
    def wrapped(as_json: bool, verbose: bool, **options: Any) -> None:
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr)
        try:
            facts, renderer, code = function(**options)
        except DecExportError as error:
            _fail(str(error), as_json)
        except KeyboardInterrupt:
            click.echo("Interrupted; nothing was kept.", err=True)
            sys.exit(128 + signal.SIGINT)
        except MemoryError:
            _fail("This machine has too little memory for that: choose a smaller backbone or fewer --samples.", as_json)
        if as_json:
            click.echo(json.dumps(facts, allow_nan=False))
        else:
            _print(renderer(facts))
        sys.exit(code)

    return wrapped


def _fail(message: str, as_json: bool) -> NoReturn:
    one_line = " ".join(message.split())
    click.echo(f"Error: {one_line}", err=True)
    if as_json:
        click.echo(json.dumps({"error": one_line, "exit_code": CANNOT_RUN}))
    sys.exit(CANNOT_RUN)


def _print(renderable: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    # A pipe or a log has no width of its own; folding tables to 80 columns would only make them harder to read.
    if not console.is_terminal:
        console = Console(width=140)
    console.print(renderable)


def _progress(step: str, seconds: float) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"[green]done[/] {step} [dim]({seconds:.1f} s)[/]")


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)


_IMAGES = click.option("--images", type=click.Path(path_type=Path), help="Folder of JPEG and PNG files for the proof.")
_SAMPLES = click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Images to use.")
_THREADS = click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the engine.  [default: all]")


@main.command()
@click.option("--backbone", help="Name of a shipped recipe; `dec-export backbones` lists them.")
@click.option("--recipe", "recipe_file", help="Recipe file, or adapter_config.yaml#NAME of the published code.")
@click.option("--task", default="classification", show_default=True, help="What the model predicts.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="safetensors file or PyTorch state dict.")
@click.option("--strict-weights", is_flag=True, help="Refuse weights that do not come from a checkpoint.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of random weights.")
@click.option("--solver", default="unroll", show_default=True, help="Form of the solver: unroll.")
@click.option("--precision", default="fp32", show_default=True, help="Precision of the graph: fp32.")
@click.option(
    "--engine", "engines", multiple=True, default=("auto",), help="onnxruntime, torch, auto or none; may repeat."
)
@_IMAGES
@_SAMPLES
@_THREADS
@click.option("--expose-phi", is_flag=True, help="Make the solved phis outputs of the model.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; must not exist.")
@click.option("--force", is_flag=True, help="Replace a bundle that exists at --out.")
@_command
def build(backbone: str | None, recipe_file: str | None, task: str, out: Path, **options: Any) -> Any:
    """Turn a recipe into a proven bundle."""
    import time

    start = time.perf_counter()
    recipe = _choose_recipe(backbone, recipe_file, task)
    from dec_export.bundle import check_target
    from dec_export.pipeline import build as build_bundle

    check_target(out, force=options["force"])
    bundle = build_bundle(recipe, out=out, progress=_progress, **options)
    _note(bundle.manifest.weights["detail"])
    facts = {
        "out": str(bundle.path),
        "files": {name: entry.model_dump() for name, entry in bundle.manifest.files.items()},
        "gate": bundle.manifest.gate,
        "seconds": round(time.perf_counter() - start, 2),
        "weights": bundle.manifest.weights,
        "parity": bundle.parity,
    }
    return facts, _render_build, GATE_FAILED if bundle.manifest.gate == "fail" else 0


def _render_build(facts: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from dec_export import render

    reports = (facts["parity"] or {"engines": {}})["engines"].values()
    parity_file = f"; report in {facts['out']}/parity.json" if facts["parity"] else ""
    return Group(*map(render.parity, reports), f"Bundle in {facts['out']} ({facts['seconds']:.0f} s){parity_file}")


def _choose_recipe(backbone: str | None, recipe_file: str | None, task: str) -> Recipe:
    from dec_export.recipe import Recipe

    if backbone is None and recipe_file is None:
        raise DecExportError("Name a model with --backbone or a recipe file with --recipe.")
    recipe = Recipe.load(recipe_file, backbone=backbone) if recipe_file else Recipe.named(backbone or "")
    if task != recipe.task:
        raise DecExportError(f"--task {task} is not part of this version of dec-export: recipes do {recipe.task}.")
    return recipe


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", default="auto", show_default=True, help="onnxruntime or torch.")
@_IMAGES
@_SAMPLES
@_THREADS
@_command
def parity(bundle: Path, **options: Any) -> Any:
    """Prove a bundle's engine against the float64 reference. Exit 1 when the gate fails."""
    from dec_export import render
    from dec_export.bundle import Bundle
    from dec_export.pipeline import prove

    report = prove(Bundle.load(bundle), progress=_progress, **options)
    return report.content, render.parity, 0 if report.passed else GATE_FAILED


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_command
def inspect(bundle: Path) -> Any:
    """Show what a bundle holds."""
    from dec_export import render
    from dec_export.bundle import Bundle
    from dec_export.inspection import inspect_bundle

    return inspect_bundle(Bundle.load(bundle)), render.inspection, 0


@main.command()
@_command
def backbones() -> Any:
    """List the shipped recipes."""
    from dec_export import render
    from dec_export.inspection import list_backbones

    return {"backbones": list_backbones()}, lambda facts: render.backbones(facts["backbones"]), 0


@main.command()
@_command
def doctor() -> Any:
    """Say what this machine can run, and what to install for the rest."""
    from dec_export import render
    from dec_export.inspection import examine_machine

    return examine_machine(), render.doctor, 0


if __name__ == "__main__":
    main()
