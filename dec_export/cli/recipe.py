"""`dec-export recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # values of JSON

import click

from dec_export.cli.app import Outcome, answers
from dec_export.cli.options import PATH

if TYPE_CHECKING:
    from dec_export.recipe.model import Recipe


@dataclass(frozen=True)
class _Imported:
    """A recipe, and the file to which it was written, or None when it was not written."""

    recipe: Recipe
    out: Path | None


@click.group("recipe")
def command() -> None:
    """Import a recipe from the published code."""


@command.command("import")
@click.argument("file", type=PATH)
@click.option("--entry", help="The name of the configuration. It is required when the file holds several.")
@click.option(
    "--backbone",
    help="The shipped recipe whose timm model the configuration adapts.  [default: the published model]",
)
@click.option("--out", type=PATH, help="The recipe file to write.  [default: print the recipe]")
@click.option("--force", is_flag=True, help="Overwrite the file at --out, if there is one.")
@answers
def import_recipe(
    file: Path, entry: str | None, backbone: str | None, out: Path | None, force: bool
) -> Outcome[_Imported]:
    """Convert a configuration in the published adapter_config.yaml to a recipe."""
    from dec_export.files import write_new_file
    from dec_export.recipe.model import Recipe

    recipe = Recipe.load(f"{file}#{entry}" if entry else file, backbone=backbone)
    if out:
        write_new_file(out, recipe.to_yaml(), force=force, option="--out")
    return Outcome(_Imported(recipe, out), _as_json, _render)


def _as_json(imported: _Imported) -> Mapping[str, Any]:
    out = None if imported.out is None else str(imported.out)
    return {"recipe": imported.recipe.model_dump(mode="json"), "out": out}


def _render(imported: _Imported) -> str:
    return f"Recipe in {imported.out}" if imported.out else imported.recipe.to_yaml().rstrip("\n")
