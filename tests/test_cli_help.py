"""Help texts are sentences that a stranger understands."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from dec_export.bench.subjects import BASELINES
from dec_export.cli.app import COMMANDS, main
from dec_export.engines.registry import engine_specs


def options_of(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Every option of a command and of those below it, and its help."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options_of(below, f"{path} {name}")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield f"{path} {parameter.opts[0]}", parameter.help or ""


OPTIONS = dict(options_of(main, "dec-export"))


def test_every_command_is_known_by_its_own_name() -> None:
    context = click.Context(main)
    assert [main.get_command(context, name).name for name in COMMANDS] == main.list_commands(context)
    assert main.get_command(context, "app") is None


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_a_sentence(option: str) -> None:
    """A noun with its article, or a verb: never a mere "Of each model."."""
    text = re.sub(r"  \[default: .*\]$", "", OPTIONS[option])
    assert re.fullmatch(r"[A-Z].{15,}\.", text), text
    assert not text.startswith(("Of ", "To ", "Must ", "May "))


@pytest.mark.parametrize("command", ["build", "parity", "bench"])
def test_engine_help_lists_every_engine_of_the_registry(command: str) -> None:
    text = OPTIONS[f"dec-export {command} --engine"]
    assert all(f"{spec.name} ({spec.summary})" in text for spec in engine_specs())


def test_baseline_help_lists_every_baseline() -> None:
    text = OPTIONS["dec-export bench --baseline"]
    assert all(f"{baseline.name} ({baseline.summary})" in text for baseline in BASELINES.values())
