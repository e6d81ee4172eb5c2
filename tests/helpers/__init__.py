"""Functions that many tests use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dec_export.bundle.plans import BuildOptions
from dec_export.bundle.store import Bundle
from dec_export.engines.base import RunOptions
from dec_export.pipeline.build import build
from dec_export.pipeline.options import EngineOptions, ProofOptions, WeightOptions, parse_forms
from dec_export.recipe.model import Recipe

_FORMS = ("solver", "precision", "solver_precision", "tap", "expose_phi")
_WEIGHTS = ("checkpoint", "strict", "seed")
_PROOF = ("images", "samples", "trace", "layers")
_RUN = ("threads", "cpu_fallback")


def build_bundle(
    recipe: Recipe | str | Path,
    out: Path,
    *,
    engines: Sequence[str] = ("auto",),
    engine_options: BuildOptions | None = None,
    timing_cache: str | Path | None = None,
    force: bool = False,
    **flat: Any,  # values of the option objects' fields
) -> Bundle:
    """Call `build` with the fields of its option objects as keywords; the solver and the formats may be strings."""

    def pick(names: Sequence[str]) -> dict[str, Any]:
        return {name: flat.pop(name) for name in names if name in flat}

    forms, weights, proof, run = (pick(names) for names in (_FORMS, _WEIGHTS, _PROOF, _RUN))
    assert not flat, f"no option of build: {', '.join(flat)}"
    return build(
        recipe,
        out=out,
        weights=WeightOptions(**weights),
        forms=parse_forms(**forms),
        engines=EngineOptions(engines, engine_options, timing_cache, RunOptions(**run)),
        proof=ProofOptions(**proof),
        force=force,
    )
