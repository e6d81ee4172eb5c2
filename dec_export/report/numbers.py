"""How numbers of a report are written, wherever people read them."""

from __future__ import annotations


def number(value: float | None, form: str = ".2e") -> str:
    """`value` in the format `form`; a report says null of what was NaN or infinite."""
    return "not finite" if value is None else format(value, form)
