"""`dec-export backbones`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any  # values of JSON

import click

from dec_export.cli.app import Outcome, answers

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dec_export.inspection import ShippedRecipe


@click.command("backbones")
@answers
def command() -> Outcome[Sequence[ShippedRecipe]]:
    """List the recipes that come with dec-export."""
    from dec_export.inspection import list_backbones

    return Outcome(list_backbones(), _as_json, _render)


def _as_json(recipes: Sequence[ShippedRecipe]) -> Mapping[str, Any]:
    return {"backbones": [recipe.model_dump(mode="json") for recipe in recipes]}


def _render(recipes: Sequence[ShippedRecipe]) -> RenderableType:
    from dec_export.report.tables import table

    return table(
        "Shipped recipes",
        ("name", "timm model", "image", "coarse resolutions"),
        ((r.name, r.timm, r.image_size, ", ".join(map(str, r.coarse_resolution))) for r in recipes),
    )
