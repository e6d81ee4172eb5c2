"""The recipes that ship with dec-export, their files, and the suggestion of a name for one that does not exist."""

from __future__ import annotations

import difflib
import sys
from importlib import resources
from typing import TYPE_CHECKING

from dec_export.errors import RecipeError
from dec_export.recipe.reading import Document, parse_document
from dec_export.tasks import task_named

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable


def shipped_recipes() -> dict[str, Traversable]:
    """Return the files of the recipes that ship with dec-export by their names, in alphabetical order."""
    files = resources.files("dec_export_models").iterdir()
    return {f.name[: -len(".yaml")]: f for f in sorted(files, key=lambda f: f.name) if f.name.endswith(".yaml")}


def shipped_name(name: str, task: str | None = None) -> str:
    """Return the name of the shipped recipe for `task` with the backbone of the recipe `name`.

    Without a task it is the recipe `name` itself. Raises RecipeError, which suggests the nearest name, when there is no
    such recipe.
    """
    known = shipped_recipes()
    ending = "" if task is None else task_named(task).recipe_suffix
    if name in known and not name.endswith(ending):
        name += ending
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise RecipeError(f"Unknown backbone '{name}'.{hint} Known backbones: {', '.join(known)}.")
    return name


def shipped_document(name: str) -> Document:
    """Return the content of a shipped recipe's file; raise RecipeError when there is no recipe of that name."""
    name = shipped_name(name)
    return parse_document(shipped_recipes()[name].read_text(), name)
