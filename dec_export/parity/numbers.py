"""Numbers of a report: as JSON, which has no NaN and no infinity, and as people read them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, SkipValidation


def number(value: float | None, form: str = ".2e") -> str:
    """`value` in the format `form`; None, NaN and infinity are "not finite"."""
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)


def finite_mean(values: list[float]) -> float:
    """The mean; NaN when one of the values is not finite, or there is none."""
    return sum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def _read(value: Any) -> Any:  # any JSON value; what is not a number is refused by the type behind
    return math.nan if value is None else value


def _written(value: float) -> float | None:
    return value if math.isfinite(value) else None


# A measurement: NaN and infinity are null in JSON, and null is NaN when it is read.
Number = Annotated[float, BeforeValidator(_read), PlainSerializer(_written, return_type=float | None, when_used="json")]

# A file's name: it may hold bytes that are no text, which Pydantic would refuse.
Name = Annotated[str, SkipValidation, PlainSerializer(lambda name: name, return_type=Any)]
