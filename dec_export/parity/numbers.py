"""The numbers of a report in JSON, which has no NaN and no infinity, and in text."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, SkipValidation


def number(value: float | None, form: str = ".2e") -> str:
    """Return `value` in the format `form`; None, NaN and infinity give "not finite"."""
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)


def finite_mean(values: list[float]) -> float:
    """Return the mean, or NaN when one of the values is not finite or there is none."""
    return sum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def _read(value: object) -> object:  # the validation that follows refuses values that are not numbers
    return math.nan if value is None else value


def _written(value: float) -> float | None:
    return value if math.isfinite(value) else None


# A measurement. NaN and infinity are written as null in JSON, and null is read as NaN.
Number = Annotated[float, BeforeValidator(_read), PlainSerializer(_written, return_type=float | None, when_used="json")]

# A file's name. It may hold bytes that are not text, which Pydantic would refuse: `Any` keeps it from checking them.
Name = Annotated[str, SkipValidation, PlainSerializer(lambda name: name, return_type=Any)]
