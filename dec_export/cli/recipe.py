"""`dec-export recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # values of JSON

import click

from dec_export.cli.app import Outcome, answers, note
from dec_export.cli.options import PATH

if TYPE_CHECKING:
    from dec_export.recipe.model import Recipe


@dataclass(frozen=True)
class _Imported:
    """A recipe, and the file to which it was written, or None when it was not written."""

    recipe: Recipe
    out: Path | None


@dataclass(frozen=True)
class _Added:
    """What the user adds to a published configuration; `recipe.published.base.ImportOptions` explains most of it.

    checkpoint: a checkpoint whose stored arguments say how its images were prepared.
    """

    backbone: str | None
    image_size: int | None
    image_processor: Path | None
    checkpoint: Path | None


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
@click.option(
    "--image-size",
    type=click.IntRange(1, 4096),
    help="The height and width of the images that the model was trained on.  [default: those of the configuration]",
)
@click.option(
    "--image-processor",
    type=PATH,
    help="The preprocessor_config.json of the trained model of transformers.  [default: that of the published model]",
)
@click.option("--checkpoint", type=PATH, help="A checkpoint whose stored arguments say how its images were prepared.")
@click.option("--out", type=PATH, help="The recipe file to write.  [default: print the recipe]")
@click.option("--force", is_flag=True, help="Overwrite the file at --out, if there is one.")
@answers
def import_recipe(file: Path, entry: str | None, out: Path | None, force: bool, **added: Any) -> Outcome[_Imported]:
    """Convert a configuration of the published code to a recipe.

    FILE is adapter_config.yaml, config_1.yaml, or the config.json of a published snapshot, or its folder.
    """
    from dec_export.files import write_new_file

    recipe, notes = _import(f"{file}#{entry}" if entry else str(file), _Added(**added))
    if out:
        write_new_file(out, recipe.to_yaml(), force=force, option="--out")
    for sentence in notes:
        note(sentence)
    return Outcome(_Imported(recipe, out), _as_json, _render)


def _import(source: str, added: _Added) -> tuple[Recipe, tuple[str, ...]]:
    from dec_export.recipe.model import Recipe
    from dec_export.recipe.published.base import ImportOptions

    recipe, notes = Recipe.imported(source, ImportOptions(added.backbone, added.image_size, added.image_processor))
    if added.checkpoint is None:
        return recipe, notes
    from dec_export.reference.weights.arguments import with_preprocessing_of

    return with_preprocessing_of(added.checkpoint, recipe), notes


def _as_json(imported: _Imported) -> Mapping[str, Any]:
    out = None if imported.out is None else str(imported.out)
    return {"recipe": imported.recipe.model_dump(mode="json"), "out": out}


def _render(imported: _Imported) -> str:
    return f"Recipe in {imported.out}" if imported.out else imported.recipe.to_yaml().rstrip("\n")
