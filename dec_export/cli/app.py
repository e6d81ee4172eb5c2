"""The command line: parse, call the API, tables. Exit 0: done; 1: the gate failed; 2: a sentence says why not."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dec_export import __version__
from dec_export.errors import DecExportError
from dec_export.tasks import ensemble_names, task_names

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dec_export.parity.report import Report, Summary
    from dec_export.recipe.model import Recipe

GATE_FAILED, CANNOT_RUN = 1, 2
FEW_SAMPLES = 4
# What a shell reports of a program that SIGPIPE ended.
_BROKEN_PIPE = 128 + 13


class _OneSentence(click.Group):
    """A group whose errors of usage are one sentence, and JSON with --json, like all others."""

    def main(self, args: Sequence[str] | None = None, **_: Any) -> NoReturn:  # type: ignore[override]
        arguments = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(arguments, prog_name="dec-export", standalone_mode=False)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "dec-export"
            _fail(f"{error.format_message()} See '{command} --help'.", "--json" in arguments)
        except (click.Abort, KeyboardInterrupt):
            _interrupted()
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dec-export")
def main() -> None:
    """Export Deep Equilibrium Canonicalizer models, prove them, and bundle them for serving."""
    # Ends like an interrupt does, so that a half-written bundle is removed.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), lambda received, _: sys.exit(128 + received))


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
            output = json.dumps(facts, allow_nan=False) if as_json else _rendered(renderer(facts))
        except DecExportError as error:
            _fail(str(error), as_json)
        except KeyboardInterrupt:
            _interrupted()
        except MemoryError:
            _fail("This machine has too little memory for that: choose a smaller backbone or fewer --samples.", as_json)
        except OSError as error:
            _fail(f"{error.strerror or error}: '{error.filename or 'a file'}' cannot be used.", as_json)
        except Exception as error:
            # Exit 1 would say that the gate failed. The traceback is one -v away.
            if verbose:
                raise
            kind = type(error).__name__
            _fail(f"A defect of dec-export, please report it with the output of -v: {kind}: {error}", as_json)
        _write(output)
        sys.exit(code)

    return wrapped


def _interrupted() -> NoReturn:
    click.echo("Interrupted; nothing was kept.", err=True)
    sys.exit(128 + signal.SIGINT)


def _fail(message: str, as_json: bool) -> NoReturn:
    one_line = " ".join(message.split())
    click.echo(f"Error: {one_line}", err=True)
    if as_json:
        _write(json.dumps({"error": one_line, "exit_code": CANNOT_RUN}))
    sys.exit(CANNOT_RUN)


def _write(output: str) -> None:
    """Write to stdout; a reader that has gone, or a full disk, ends the program without a traceback."""
    try:
        click.echo(output)
    except OSError as error:
        # Python flushes stdout once more at its end and must not stumble over the same fault.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(_BROKEN_PIPE)
        click.echo(f"Error: Cannot write to standard output: {error.strerror}.", err=True)
        sys.exit(CANNOT_RUN)


def _rendered(renderable: RenderableType) -> str:
    from rich.console import Console

    # Names and paths are printed as they are, brackets included. A pipe has no width of its own; folding tables to
    # 80 columns would only make them harder to read.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 140)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")


def _progress(step: str, seconds: float | None) -> None:
    from rich.console import Console
    from rich.control import Control
    from rich.segment import ControlType
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        # What comes next takes the place of the line of the unfinished step.
        console.control(Control((ControlType.ERASE_IN_LINE, 2), ControlType.CARRIAGE_RETURN))
    if seconds is not None:
        console.print(Text.assemble(("done", "green"), f" {step} ", (f"({seconds:.1f} s)", "dim")))
    elif console.is_terminal:
        text = Text.assemble("...  ", step)
        text.truncate(console.width - 1)
        console.print(text, end="\r")


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)


def _note_samples(report: Report, wanted: int) -> None:
    if report.samples < wanted:
        _note(f"There are only {report.samples} images; {wanted} were asked for.")
    if report.samples < FEW_SAMPLES:
        _note(f"With fewer than {FEW_SAMPLES} images the noise floor is a matter of luck, and so is the gate.")


_IMAGES = click.option("--images", type=click.Path(path_type=Path), help="Folder of JPEG and PNG files for the proof.")
_SAMPLES = click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Images to use.")
_CPU_FALLBACK = click.option(
    "--cpu-fallback", is_flag=True, help="Let onnxruntime-cuda run on the CPU where CUDA does not start."
)
_THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: all]")


@main.command()
@click.option("--backbone", help="Name of a shipped recipe; `dec-export backbones` lists them.")
@click.option("--recipe", "recipe_file", help="Recipe file, or adapter_config.yaml#NAME of the published code.")
@click.option("--task", type=click.Choice(task_names()), help="What the model is to predict.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="safetensors file or PyTorch state dict.")
@click.option("--strict-weights", is_flag=True, help="Refuse weights that do not come from a checkpoint.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of random weights.")
@click.option("--solver", default="unroll", show_default=True, help="Form of the solver: unroll, loop or plugin.")
@click.option("--precision", default="fp32", show_default=True, help="Of the backbone: fp32, fp16 or bf16.")
@click.option("--solver-precision", default="fp32", show_default=True, help="Of its convolutions: fp32 or fp16.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("auto",),
    help="onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx, torch, none, or auto: all that can be built here. "
    "May repeat.",
)
@click.option("--batch", metavar="MIN,OPT,MAX", help="Batches of TensorRT engines.  [default: 1,8,32]")
@click.option(
    "--workspace", type=click.IntRange(1, 1 << 20), metavar="MIB", help="Scratch memory of TensorRT's layers."
)
@click.option("--compute-capability", multiple=True, help="GPU that tensorrt-rtx builds for, as 8.9; may repeat.")
@click.option("--hardware-compatibility", type=click.Choice(["ampere-plus", "same-compute-capability"]))
@click.option("--version-compatible", is_flag=True, help="Let later versions of TensorRT run the engine.")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="Folder of TensorRT's timings.")
@_CPU_FALLBACK
@_IMAGES
@_SAMPLES
@_THREADS
@click.option("--expose-phi", is_flag=True, help="Make the solved phis outputs of the model.")
@click.option(
    "--tap", type=click.IntRange(min=0), metavar="BLOCK", help="Make the feature map after this block an output."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; must not exist.")
@click.option("--force", is_flag=True, help="Replace a bundle that exists at --out.")
@_command
def build(
    backbone: str | None,
    recipe_file: str | None,
    task: str | None,
    out: Path,
    batch: str | None,
    workspace: int | None,
    compute_capability: tuple[str, ...],
    hardware_compatibility: str | None,
    version_compatible: bool,
    **options: Any,
) -> Any:
    """Turn a recipe into a proven bundle."""
    import time

    start = time.perf_counter()
    recipe = _choose_recipe(backbone, recipe_file, task)
    from dec_export.parity.report import summary_of
    from dec_export.pipeline.build import build as build_bundle

    engine_options = _engine_options(
        batch=_parse_batch(batch),
        workspace_bytes=workspace and workspace << 20,
        compute_capabilities=compute_capability,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
    )
    bundle = build_bundle(recipe, out=out, engine_options=engine_options, progress=_progress, **options)
    _note(bundle.manifest.weights.detail)
    for name, entry in bundle.manifest.engines.items():
        if "reason" in entry:
            _note(f"{name}: {entry['gate']}: {entry['reason']}.")
    summary = summary_of(bundle)
    for report in _reports(summary):
        _note_samples(report, options["samples"])
    facts = {
        "out": str(bundle.path),
        "files": {name: entry.model_dump() for name, entry in bundle.manifest.files.items()},
        "gate": bundle.manifest.gate,
        "seconds": round(time.perf_counter() - start, 2),
        "weights": bundle.manifest.weights.model_dump(),
        "engines": bundle.manifest.engines,
        "plans": {name: entry.model_dump(mode="json") for name, entry in bundle.manifest.plans.items()},
        "parity": None if summary is None else summary.model_dump(mode="json"),
    }
    code = GATE_FAILED if bundle.manifest.gate == "fail" else 0
    return facts, lambda facts: _render_build(facts, _reports(summary)), code


def _reports(summary: Summary | None) -> list[Report]:
    return [] if summary is None else list(summary.engines.values())


_OPTION_OF = {
    "batch": "--batch",
    "workspace_bytes": "--workspace",
    "compute_capabilities": "--compute-capability",
    "hardware_compatibility": "--hardware-compatibility",
}


def _engine_options(**asked: Any) -> Any:
    """The options of TensorRT engines that were given, or None when none was."""
    given = {name: value for name, value in asked.items() if value}
    if not given:
        return None
    from pydantic import ValidationError

    from dec_export.engines.tensorrt.options import BuildOptions

    try:
        return BuildOptions(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = _OPTION_OF.get(str(first["loc"][0]), "") if first["loc"] else "--batch"
        raise DecExportError(f"{option}: {first['msg'].removeprefix('Value error, ')}.") from error


def _parse_batch(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise DecExportError(f"--batch expects MIN,OPT,MAX as in 1,8,32, found '{text}'.")
    return tuple(map(int, parts))


def _render_build(facts: dict[str, Any], reports: Sequence[Report]) -> RenderableType:
    from rich.console import Group

    from dec_export.report import tables

    parity_file = f"; report in {facts['out']}/parity.html" if reports else ""
    return Group(
        *map(tables.parity, reports),
        *(tables.plan(name, plan) for name, plan in facts["plans"].items()),
        f"Bundle in {facts['out']} ({facts['seconds']:.0f} s){parity_file}",
    )


def _choose_recipe(backbone: str | None, recipe_file: str | None, task: str | None) -> Recipe:
    from dec_export.recipe.model import Recipe

    if backbone is None and recipe_file is None:
        raise DecExportError("Name a model with --backbone or a recipe file with --recipe.")
    recipe = Recipe.load(recipe_file, backbone=backbone) if recipe_file else Recipe.named(backbone or "", task)
    if task not in (None, recipe.task):
        raise DecExportError(f"The recipe '{recipe.name}' is for {recipe.task}, not for {task}: leave --task out.")
    return recipe


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help="onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx or torch; auto is the best that runs here.",
)
@_CPU_FALLBACK
@click.option("--allow-host-code", is_flag=True, help="Let a version-compatible engine run the library it carries.")
@_IMAGES
@_SAMPLES
@_THREADS
@click.option("--trace", "show_trace", is_flag=True, help="Name the first place where the engine leaves the reference.")
@click.option("--layers", "show_layers", is_flag=True, help="Measure every block's equivariance to turns and the like.")
@click.option("--html", type=click.Path(path_type=Path), help="File for the report as a page, with pictures.")
@click.option("--force", is_flag=True, help="Overwrite --html.")
@_command
def parity(bundle: Path, show_trace: bool, show_layers: bool, **options: Any) -> Any:
    """Prove a bundle's engine against the float64 reference. Exit 1 when the gate fails."""
    from dec_export.bundle.store import Bundle
    from dec_export.pipeline.build import prove
    from dec_export.report import tables

    report = prove(Bundle.load(bundle), trace=show_trace, layers=show_layers, progress=_progress, **options)
    _note_samples(report, options["samples"])
    if options["html"]:
        _note(f"Report in {options['html']}.")
    render = tables.traced if show_trace else tables.parity
    facts = report.model_dump(mode="json")
    return facts, lambda _: render(report), 0 if report.passed else GATE_FAILED


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", "engines", multiple=True, default=("onnxruntime",), show_default=True, help="May repeat.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=("eager", "plain"),
    show_default=True,
    help="eager, compile, plain (the backbone without DEC), optim, train, optim-train or none; may repeat.",
)
@click.option("--batch", default="1,8", show_default=True, help="Batches, separated by commas.")
@click.option("--rounds", type=click.IntRange(min=1), default=11, show_default=True, help="Timed runs of each.")
@_THREADS
@click.option("--memory/--no-memory", default=True, help="Measure peak memory too, each in a fresh process.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Write a picture: .png, .svg or .pdf.")
@_command
def bench(bundle: Path, batch: str, baselines: tuple[str, ...], picture: Path | None, **options: Any) -> Any:
    """Time a bundle's engines beside eager PyTorch and the backbone without DEC, interleaved, in one run."""
    from dec_export.report import tables

    sizes = batch.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise DecExportError(f"--batch expects numbers separated by commas as in 1,8, found '{batch}'.")
    if picture and picture.suffix not in (".png", ".svg", ".pdf"):
        raise DecExportError(f"--plot writes .png, .svg or .pdf, found '{picture.name}'.")
    from dec_export.bench.run import bench as run_bench
    from dec_export.bundle.store import Bundle
    from dec_export.progress import reporting

    wanted = () if baselines == ("none",) else baselines
    with reporting(_progress):
        report = run_bench(Bundle.load(bundle), baselines=wanted, batches=tuple(map(int, sizes)), **options)
    if picture:
        from dec_export.bench.plot import plot

        plot(report, picture)
    return report.model_dump(mode="json"), tables.bench, 0


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_command
def inspect(bundle: Path) -> Any:
    """Show what a bundle holds."""
    from dec_export.bundle.store import Bundle
    from dec_export.inspection import inspect_bundle
    from dec_export.report import tables

    return inspect_bundle(Bundle.load(bundle)), tables.inspection, 0


@main.group()
def recipe() -> None:
    """Work with recipes."""


@recipe.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--entry", help="Configuration in the file; needed when it holds several.")
@click.option("--backbone", help="Shipped recipe whose timm model it was applied to; by default the published one.")
@click.option("--out", type=click.Path(path_type=Path), help="Recipe file to write; by default it is printed.")
@click.option("--force", is_flag=True, help="Overwrite --out.")
@_command
def import_recipe(file: Path, entry: str | None, backbone: str | None, out: Path | None, force: bool) -> Any:
    """Turn a configuration of the published code's adapter_config.yaml into a recipe."""
    from dec_export.files import write_new_file
    from dec_export.recipe.model import Recipe

    imported = Recipe.load(f"{file}#{entry}" if entry else file, backbone=backbone)
    text = imported.to_yaml()
    if out:
        write_new_file(out, text, force=force, option="--out")
    facts = {"recipe": imported.model_dump(mode="json"), "out": str(out) if out else None}
    return facts, lambda _: f"Recipe in {out}" if out else text.rstrip("\n"), 0


class _RepositoryFirst(click.Group):
    """`triton BUNDLE ...` writes a repository; other words are commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["repository", *args]
        return super().parse_args(ctx, args)


@main.group(cls=_RepositoryFirst, subcommand_metavar="BUNDLE [OPTIONS] | check URL [OPTIONS]")
def triton() -> None:
    """Serve a bundle with Triton Inference Server, or check a server that does.

    `dec-export triton repository --help` lists the options of `dec-export triton BUNDLE`.
    """


@triton.command("repository")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="Folder of the model repository.")
@click.option(
    "--backend", default="python", show_default=True, help="tensorrt, onnxruntime, or python, which runs either."
)
@click.option("--name", help="Of the models.  [default: the recipe's]")
@click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="Of each model.")
@click.option("--max-batch", type=click.IntRange(1, 4096), help="Largest batch.  [default: 8, or the plan's]")
@click.option("--device", type=click.Choice(["gpu", "cpu"]), default="gpu", show_default=True, help="Where it runs.")
@click.option("--labels", type=click.Path(path_type=Path), help="Names of the classes, one a line.")
@click.option(
    "--ensemble", type=click.Choice(["auto", *ensemble_names()]), default="auto", help="Must fit the model's task."
)
@click.option("--min-server", default="2.51", show_default=True, help="Oldest server that must read the files.")
@click.option("--tensorrt-version", help="Of the server's TensorRT.  [default: what is installed here]")
@click.option("--compute-capability", help="Of the server's GPU, as 9.0.  [default: that of the GPU here]")
@_command
def serve(bundle: Path, repository: Path, min_server: str, **options: Any) -> Any:
    """Add a bundle to a model repository of Triton Inference Server."""
    from dec_export.bundle.store import Bundle
    from dec_export.serving.triton.config import parse_version
    from dec_export.serving.triton.options import ServingOptions
    from dec_export.serving.triton.repository import write_repository

    wanted = ServingOptions(min_server=parse_version(min_server), **options)
    written = write_repository(Bundle.load(bundle), repository, wanted)
    for note in written.notes:
        _note(note)
    facts = {
        "repository": str(written.repository),
        "models": written.versions,
        "readme": str(written.readme),
        "run_script": str(written.run_script),
        "notes": written.notes,
    }
    listed = ", ".join(f"{name} version {version}" for name, version in written.versions.items())
    return facts, lambda _: f"{listed} in {repository}; how to start the server: {written.readme}", 0


@triton.command()
@click.argument("url")
@click.option("--model", required=True, help="The name that the repository was written with.")
@click.option("--protocol", type=click.Choice(["http", "grpc"]), default="http", show_default=True)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of JPEG and PNG files to send.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Compare with this bundle's own engine.")
@click.option("--engine", default="auto", show_default=True, help="Of the bundle, to compare with.")
@click.option("--requests", type=click.IntRange(min=1), default=32, show_default=True, help="To send.")
@_command
def check(url: str, model: str, bundle: Path | None, **options: Any) -> Any:
    """Send real images to a running server. Exit 1 when its answers are not those of the bundle."""
    from dec_export.bundle.store import Bundle
    from dec_export.report import tables
    from dec_export.serving.triton.check import check_server

    report = check_server(url, model, bundle=Bundle.load(bundle) if bundle else None, **options)
    facts = report.model_dump(mode="json")
    return facts, tables.server, GATE_FAILED if facts["agrees"] is False else 0


@main.command()
@_command
def backbones() -> Any:
    """List the shipped recipes."""
    from dec_export.inspection import list_backbones
    from dec_export.report import tables

    return {"backbones": list_backbones()}, lambda facts: tables.backbones(facts["backbones"]), 0


@main.command()
@_command
def doctor() -> Any:
    """Say what this machine can run, and what to install for the rest."""
    from dec_export.doctor import examine_machine
    from dec_export.report import tables

    return examine_machine().model_dump(mode="json"), tables.doctor, 0


if __name__ == "__main__":
    main()
