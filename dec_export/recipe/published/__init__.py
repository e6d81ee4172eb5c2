"""The translation of the published programs' configuration files to recipes; one module for each program.

Source: the published implementation of arXiv 2508.14187; docs/semantics.md says what each hyperparameter does.
A new program is a module with a `Program`, and its line in `PROGRAMS`.
"""

from __future__ import annotations

from dec_export.errors import RecipeError
from dec_export.recipe.published.base import Entry, ImportOptions, Program, Translation
from dec_export.recipe.published.imagenet import IMAGENET
from dec_export.recipe.published.on_transformers import ON_TRANSFORMERS
from dec_export.recipe.reading import Document

PROGRAMS: tuple[Program, ...] = (IMAGENET, ON_TRANSFORMERS)


def is_published(document: Document) -> bool:
    """Return whether a document is a configuration of a published program, or a file of several configurations."""
    return "backbone" not in document and _program(document) is not None


def published_translation(document: Document, file: str, name: str, options: ImportOptions) -> Translation:
    """Return the document of a recipe, not yet checked, for one configuration of a published program.

    name: the name of the configuration if the file holds several.
    options: what the user adds to the configuration.
    Raises RecipeError when no configuration is named, when its model is unknown or not one to deploy, and for options
    that its program has no use for.
    """
    program = _program(document)
    assert program is not None, "published_translation translates what is_published accepts"
    config = document if program.model_field in document else _choose(document, file, name)
    return program.translate(Entry(name or "published", file, config), options)


def _program(document: Document) -> Program | None:
    """Return the program whose field names the model, in the document itself or in most of its configurations."""
    for program in PROGRAMS:
        if isinstance(document.get(program.model_field), str) and program.marks & set(document):
            return program
    configurations = _configurations(document)
    counts = {program.model_field: 0 for program in PROGRAMS}
    for name in configurations:
        for field in counts:
            counts[field] += field in document[name]
    program = max(PROGRAMS, key=lambda each: counts[each.model_field])
    return program if counts[program.model_field] else None


def _configurations(document: Document) -> list[str]:
    """Return the names of the configurations in a file, in their order."""
    marks = frozenset[str]().union(*(program.marks for program in PROGRAMS))
    named = {name: value for name, value in document.items() if isinstance(name, str) and isinstance(value, dict)}
    return [name for name, value in named.items() if marks & set(value)]


def _choose(document: Document, file: str, name: str) -> Document:
    known = _configurations(document)
    if name not in known:
        found = f"'{name}' is none of them" if name else "none was named"
        raise RecipeError(
            f"'{file}' holds several configurations and {found}: write {file}#NAME, or --entry NAME of "
            f"`recipe import`, with NAME one of {', '.join(known)}."
        )
    chosen: Document = document[name]
    return chosen
