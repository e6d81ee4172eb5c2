"""The group of all commands, and what they share: errors, --json, output and exit codes.

The exit code is 0 when a command has succeeded, 1 when a gate failed, and 2 when the command could not run; one
sentence then says why. It is 3 when an evaluation has too few images for a verdict.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar  # options that Click converts, and JSON

import click

from dec_export import __version__
from dec_export.errors import DecExportError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

GATE_FAILED, CANNOT_RUN, CANNOT_TELL = 1, 2, 3
# A shell reports this exit code for a program that SIGPIPE ended.
_BROKEN_PIPE = 128 + 13
# Each name is that of a module of `dec_export.cli`, whose `command` is imported when a user calls it.
COMMANDS = ("backbones", "bench", "build", "doctor", "evaluate", "inspect", "parity", "predict", "recipe", "triton")

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Outcome(Generic[Facts]):
    """The result of a command.

    facts: the facts that the command found. as_json: the function that turns them into the JSON object of --json.
    render: the function that turns them into text for people. exit_code: 0, or the code of a gate's verdict.
    """

    facts: Facts
    as_json: Callable[[Facts], Mapping[str, Any]]
    render: Callable[[Facts], RenderableType]
    exit_code: int = 0


def dumped(facts: BaseModel) -> Mapping[str, Any]:
    """Return the JSON object of a command whose facts are a pydantic model."""
    return facts.model_dump(mode="json")


class _Commands(click.Group):
    """A group that imports a command when a user calls it, and prints a usage error as one sentence.

    With --json, a usage error is also printed as one JSON object, like all other errors.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"dec_export.cli.{cmd_name}").command
        return command

    def main(self, args: Sequence[str] | None = None, **_: Any) -> NoReturn:  # type: ignore[override]
        arguments = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(arguments, prog_name="dec-export", standalone_mode=False)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "dec-export"
            _fail(f"{error.format_message()} See '{command} --help'.", "--json" in arguments)
        except (click.Abort, KeyboardInterrupt) as error:
            _interrupted(error)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dec-export")
def main() -> None:
    """Export Deep Equilibrium Canonicalizer models, prove them, and bundle them for serving."""
    # These signals end the program like an interrupt, so that a half-written bundle is removed.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP.
            signal.signal(getattr(signal, name), lambda received, _: sys.exit(128 + received))


def answers(function: Callable[..., Outcome[Any]]) -> Callable[..., None]:
    """Add --json and -v, print a user's errors as one sentence, and turn the outcome into output and exit code."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
    @click.option("-v", "--verbose", is_flag=True, help="Print the libraries' log messages on stderr.")
    @wraps(function)
    def wrapped(as_json: bool, verbose: bool, **options: Any) -> None:
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr)
        try:
            outcome = function(**options)
            output = _output(outcome, as_json=as_json)
        except KeyboardInterrupt as error:
            _interrupted(error)
        except Exception as error:
            # With -v, the traceback of a defect is shown.
            message = _sentence(error)
            if message is None and verbose:
                raise
            _fail(message or _defect(error), as_json)
        _write(output)
        sys.exit(outcome.exit_code)

    return wrapped


def note(sentence: str) -> None:
    """Print a sentence on stderr, apart from the output."""
    click.echo(sentence, err=True)


def show_progress(step: str, seconds: float | None) -> None:
    """Print one line on stderr for each finished step; this is a listener for `dec_export.progress.reporting`."""
    from rich.console import Console
    from rich.control import Control
    from rich.segment import ControlType
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        # The next text replaces the line of the unfinished step.
        console.control(Control((ControlType.ERASE_IN_LINE, 2), ControlType.CARRIAGE_RETURN))
    if seconds is not None:
        console.print(Text.assemble(("done", "green"), f" {step} ", (f"({seconds:.1f} s)", "dim")))
    elif console.is_terminal:
        text = Text.assemble("...  ", step)
        text.truncate(console.width - 1)
        console.print(text, end="\r")


def _output(outcome: Outcome[Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(outcome.as_json(outcome.facts), allow_nan=False)
    return _rendered(outcome.render(outcome.facts))


def _rendered(renderable: RenderableType) -> str:
    from rich.console import Console

    # Names and paths are printed unchanged, including brackets. A pipe has no width, and tables that are folded to
    # 80 columns are harder to read.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 140)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")


def _sentence(error: Exception) -> str | None:
    """Return the message for a user who can do something about the error, or None for a defect of dec-export."""
    if isinstance(error, DecExportError):
        return str(error)
    if isinstance(error, MemoryError):
        return "This machine has too little memory for this command: choose a smaller backbone or fewer --samples."
    if isinstance(error, OSError):
        return f"'{error.filename or 'A file'}' cannot be used: {error.strerror or error}."
    return None


def _defect(error: Exception) -> str:
    return f"This is a defect of dec-export, please report it with the output of -v: {type(error).__name__}: {error}"


def _interrupted(error: BaseException) -> NoReturn:
    """End the program; the text of the error says what was kept, if anything."""
    click.echo(f"The command was interrupted; {error or 'nothing was kept'}.", err=True)
    sys.exit(128 + signal.SIGINT)


def _fail(message: str, as_json: bool) -> NoReturn:
    one_line = " ".join(message.split())
    click.echo(f"Error: {one_line}", err=True)
    if as_json:
        _write(json.dumps({"error": one_line, "exit_code": CANNOT_RUN}))
    sys.exit(CANNOT_RUN)


def _write(output: str) -> None:
    """Write to stdout. A closed pipe or a full disk ends the program without a traceback."""
    try:
        click.echo(output)
    except OSError as error:
        # Python flushes stdout again when it ends, and that must not fail for the same reason.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(_BROKEN_PIPE)
        click.echo(f"Error: Cannot write to standard output: {error.strerror}.", err=True)
        sys.exit(CANNOT_RUN)
