"""`dec-export doctor`."""

from __future__ import annotations

from typing import Any

import click

from dec_export.cli.app import Outcome, answers


@click.command("doctor")
@answers
def command() -> Outcome[dict[str, Any]]:
    """Say what this machine can run, and what to install for the rest."""
    from dec_export.doctor import examine_machine
    from dec_export.report import tables

    return Outcome(examine_machine(), dict, tables.doctor)
