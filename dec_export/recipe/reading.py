"""The reading of recipes' YAML files, with limits because they may be hostile, and the check of their fields."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dec_export.errors import RecipeError
from dec_export.recipe.canonicalizers import KINDS

MAX_RECIPE_BYTES = 1 << 20
# Aliases let a small YAML file represent a huge document; a recipe has a few dozen values.
_MAX_VALUES = 10_000

# A YAML mapping before its check, so that its values have any type.
Document = dict[str, Any]
_Model = TypeVar("_Model", bound=BaseModel)


def read_document(file: str) -> Document:
    """Return the mapping in a YAML file.

    Raises RecipeError when the file cannot be read, is too large, or does not hold a mapping.
    """
    return parse_document(read_text(Path(file)), file)


def read_text(path: Path) -> str:
    """Return the text of a recipe's file; raise RecipeError when it cannot be read or is too large."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"'{path}' is larger than {MAX_RECIPE_BYTES} bytes, which no recipe is: name a recipe.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"'{path}' is not a text file in UTF-8: a recipe is a YAML file.") from error


class _RecipeLoader(yaml.SafeLoader):
    """A safe loader that limits the growth of a mapping by merge keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merge keys, and raise an error when they make the mapping too large."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "merge keys repeat too much", node.start_mark)


def parse_document(text: str, source: str) -> Document:
    """Return the mapping in a YAML text; raise RecipeError, which names the text by `source`, for anything else."""
    try:
        document = yaml.load(text, _RecipeLoader)  # noqa: S506 - a subclass of SafeLoader
    # PyYAML does not catch the exceptions that int(), datetime and the like raise for an invalid scalar.
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise RecipeError(f"'{source}' is not valid YAML{line}: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(document, dict):
        kind = "nothing" if document is None else f"a {type(document).__name__}"
        raise RecipeError(f"'{source}' holds {kind}, expected a mapping of recipe fields.")
    return document


def validate(model: type[_Model], document: Document, source: str) -> _Model:
    """Return the document as a model of pydantic.

    Raises RecipeError, which names the document by `source` and the first three fields that are wrong.
    """
    try:
        # YAML has lists where the recipe has tuples; everything else must already have its type.
        return model.model_validate(_lists_to_tuples(document, itertools.count()))
    except ValidationError as error:
        raise RecipeError(f"{source}: {'; '.join(_sentence(e) for e in error.errors()[:3])}.") from error
    except RecursionError as error:
        raise RecipeError(f"{source} contains itself: a recipe has no cycles.") from error


def _lists_to_tuples(value: object, visited: Iterator[int]) -> object:
    if next(visited) > _MAX_VALUES:
        raise RecipeError(f"The recipe's aliases stand for more than {_MAX_VALUES} values: write them out.")
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item, visited) for key, item in value.items()}
    return tuple(_lists_to_tuples(item, visited) for item in value) if isinstance(value, list) else value


def _sentence(error: ErrorDetails) -> str:
    # Pydantic puts the kind of a canonicalizer between its field and those of its parts.
    field = ".".join(str(part) for part in error["loc"] if part not in KINDS)
    if error["type"] == "extra_forbidden":
        return f"unknown field '{field}'"
    if error["type"] == "missing":
        return f"field '{field}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] != "value_error":
        # YAML writes lists where the recipe has tuples.
        message = message.replace("valid tuple", "list") + f", found {reprlib.repr(error['input'])}"
    return f"field '{field}': {message}" if field else message
