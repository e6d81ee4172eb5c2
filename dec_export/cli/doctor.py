"""`dec-export doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dec_export.cli.app import Outcome, answers, dumped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dec_export.doctor import Examination


@click.command("doctor")
@answers
def command() -> Outcome[Examination]:
    """Show which engines this machine can build and run, and what to install for the others."""
    from dec_export.doctor import examine_machine

    return Outcome(examine_machine(), dumped, _render)


def _render(found: Examination) -> RenderableType:
    from rich.console import Group

    from dec_export.report.tables import key_values, table

    machine = {key.replace("_", " "): value for key, value in found.machine.model_dump().items()}
    libraries = {name: version or "not installed" for name, version in found.libraries.items()}
    engines = table(
        "Engines",
        ("engine", "builds", "runs", "detail"),
        ((state.name, _yes(state.can_build), _yes(state.can_run), state.detail) for state in found.engines),
    )
    more = {
        "ONNX Runtime providers": ", ".join(found.onnxruntime_providers) or "none",
        "TensorRT plugin": f"{_yes(found.plugin.available)}: {found.plugin.detail}",
    }
    photographs = {"found": found.photographs.count, "": found.photographs.detail}
    return Group(
        key_values("This machine", machine),
        key_values("Libraries", libraries),
        engines,
        key_values("", more),
        key_values("Default photographs", photographs),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
