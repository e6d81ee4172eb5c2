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
    """A recipe, and the file that it was written to, if there is one."""

    recipe: Recipe
    out: Path | None


@click.group("recipe")
def command() -> None:
    """Work with recipes."""


@command.command("import")
@click.argument("file", type=PATH)
@click.option("--entry", help="The configuration in the file, which must be named when there are several.")
@click.option(
    "--backbone",
    help="The shipped recipe whose timm model the configuration was applied to.  [default: the published one]",
)
@click.option("--out", type=PATH, help="The recipe file to write; without it, the recipe is printed.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists at --out.")
@answers
def import_recipe(
    file: Path, entry: str | None, backbone: str | None, out: Path | None, force: bool
) -> Outcome[_Imported]:
    """Turn a configuration of the published code's adapter_config.yaml into a recipe."""
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
