"""Help texts that list the engines and the baselines, written from their registries."""

from __future__ import annotations

from dec_export.bench.subjects import BASELINES
from dec_export.engines.registry import engine_specs


def engine_listing() -> str:
    """Return every engine with its summary, in the order in which `auto` prefers the engines."""
    return "; ".join(f"{spec.name} ({spec.summary})" for spec in engine_specs())


def excluded_from_auto() -> str:
    """Return the names of the engines that `auto` never selects."""
    return " and ".join(spec.name for spec in engine_specs() if not spec.automatic)


def baseline_listing() -> str:
    """Return every baseline of `dec-export bench` with its summary."""
    return "; ".join(f"{baseline.name} ({baseline.summary})" for baseline in BASELINES.values())
