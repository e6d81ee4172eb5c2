"""`dec-export triton`: write a model repository of Triton Inference Server, or check a server that runs one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any  # values of options, which Click converts, and of JSON

import click

from dec_export.cli.app import GATE_FAILED, Outcome, answers, dumped, note
from dec_export.cli.options import BUNDLE, PATH

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dec_export.serving.triton.check import Comparison, ServerReport
    from dec_export.serving.triton.repository import Written


class _RepositoryFirst(click.Group):
    """A group that reads `triton BUNDLE ...` as `triton repository BUNDLE ...`, unless a command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["repository", *args]
        return super().parse_args(ctx, args)


@click.group("triton", cls=_RepositoryFirst, subcommand_metavar="BUNDLE [OPTIONS] | check URL [OPTIONS]")
def command() -> None:
    """Serve a bundle with Triton Inference Server, or check a server that does.

    `dec-export triton repository --help` lists the options of `dec-export triton BUNDLE`.
    """


@command.command("repository")
@BUNDLE
@click.option("--repository", type=PATH, required=True, help="The folder of the model repository.")
@click.option(
    "--backend",
    default="python",
    show_default=True,
    help="The server's backend: tensorrt, onnxruntime, or python, which runs either.",
)
@click.option("--name", help="The name of the models.  [default: the recipe's name]")
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="The number of instances of each model.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 4096),
    help="The largest batch.  [default: 8, or the largest batch of the TensorRT plan]",
)
@click.option(
    "--device",
    type=click.Choice(["gpu", "cpu"]),
    default="gpu",
    show_default=True,
    help="The device on which the server runs the model.",
)
@click.option("--labels", type=PATH, help="The file with the names of the classes, one on each line.")
@click.option(
    "--ensemble",
    type=click.Choice(["auto", "classify", "segment"]),
    default="auto",
    show_default=True,
    help="The kind of answer that the server gives, which must fit the model's task.",
)
@click.option(
    "--min-server",
    default="2.51",
    show_default=True,
    help="The oldest version of the server that must be able to read the files.",
)
@click.option("--tensorrt-version", help="The version of the server's TensorRT.  [default: the version installed here]")
@click.option(
    "--compute-capability",
    help="The compute capability, such as 9.0, of the server's GPU.  [default: that of this machine's GPU]",
)
@answers
def repository(bundle: Path, repository: Path, min_server: str, **options: Any) -> Outcome[Written]:
    """Add a bundle to a model repository of Triton Inference Server."""
    from dec_export.bundle.store import Bundle
    from dec_export.serving.triton.config import parse_version
    from dec_export.serving.triton.options import ServingOptions
    from dec_export.serving.triton.repository import write_repository

    wanted = ServingOptions(min_server=parse_version(min_server), **options)
    written = write_repository(Bundle.load(bundle), repository, wanted)
    for sentence in written.notes:
        note(sentence)
    return Outcome(written, _as_json, lambda found: _render_written(found, repository))


def _as_json(written: Written) -> Mapping[str, Any]:
    return {
        "repository": str(written.repository),
        "models": written.versions,
        "readme": str(written.readme),
        "run_script": str(written.run_script),
        "notes": written.notes,
    }


def _render_written(written: Written, repository: Path) -> str:
    listed = ", ".join(f"{name} version {version}" for name, version in written.versions.items())
    return f"{listed} in {repository}; how to start the server: {written.readme}"


@command.command("check")
@click.argument("url")
@click.option("--model", required=True, help="The name of the model, as in --name of the repository.")
@click.option(
    "--protocol",
    type=click.Choice(["http", "grpc"]),
    default="http",
    show_default=True,
    help="The protocol of the requests to the server.",
)
@click.option("--images", type=PATH, help="The folder of JPEG and PNG files to send.  [default: installed photographs]")
@click.option("--bundle", type=PATH, help="The bundle with whose engine the server's answers are compared.")
@click.option(
    "--engine", default="auto", show_default=True, help="The engine of --bundle with which the answers are compared."
)
@click.option(
    "--requests", type=click.IntRange(min=1), default=32, show_default=True, help="The number of requests to send."
)
@answers
def check(url: str, model: str, bundle: Path | None, **options: Any) -> Outcome[ServerReport]:
    """Send real images to a running server. Exit 1 when its answers differ from those of the bundle."""
    from dec_export.bundle.store import Bundle
    from dec_export.serving.triton.check import check_server

    report = check_server(url, model, bundle=Bundle.load(bundle) if bundle else None, **options)
    return Outcome(report, dumped, _render_check, GATE_FAILED if report.agrees is False else 0)


def _render_check(report: ServerReport) -> RenderableType:
    from rich.console import Group

    from dec_export.report.tables import key_values, table

    latencies = report.latency_ms.model_dump()
    summary = key_values(
        f"Server {report.url} ({report.protocol})",
        {
            "ensemble": report.ensemble,
            "requests": f"{report.requests}, of {report.images} images",
            "latency in ms": ", ".join(f"{name} {value:.1f}" for name, value in latencies.items()),
            "compared with": _compared(report.comparison),
        },
    )
    counts = {name: model.model_dump() for name, model in report.statistics.items()}
    columns = ("model", *next(iter(counts.values())))
    rows = ((name, *values.values()) for name, values in counts.items())
    return Group(summary, table("The server's own counts", columns, rows, numbers=columns[1:]))


def _compared(found: Comparison | None) -> str:
    from dec_export.parity.numbers import number

    if found is None:
        return "nothing: name a --bundle"
    logits = "identical" if found.identical else f"differ by {number(found.max_difference)} of the largest"
    return (
        f"{found.engine}: {found.same_answers} of {found.answers} answers are the same, logits {logits}, "
        f"allowed {found.tolerance:.1e}"
    )
