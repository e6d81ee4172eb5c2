"""The command line is run in this process, and its output is kept."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from dec_export.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error of one command."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:  # JSON: any value
        """Return the JSON document on standard output."""
        return json.loads(self.out)


def dec_export(*arguments: object) -> Outcome:
    """Run `dec-export` with these arguments; the command's signal handlers do not outlive it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def succeed(*arguments: object) -> Outcome:
    """Run a command that must end with exit code 0."""
    outcome = dec_export(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome
