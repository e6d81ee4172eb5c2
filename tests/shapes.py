"""Shape annotations checked while tests run: jaxtyping's import hook, which must come before what it checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

# Modules whose functions say by jaxtyping which shapes they take and give. Each call of them in a test is checked.
SHAPE_CHECKED = [
    *(
        f"dec_export.reference.{name}"
        for name in ("anderson", "canonicalizer", "finite", "groups", "heads", "optim", "warp")
    ),
    *(f"dec_export.lowering.{name}" for name in ("block", "heads", "matrices", "mixing", "search", "warp")),
    *(f"dec_export.parity.{name}" for name in ("measures", "metrics")),
    "dec_export.tasks.measures",
]

# An int may stand where a float is expected, as Python's type checkers have it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_P = ParamSpec("_P")
_R = TypeVar("_R")


def install() -> None:
    """Check every module of `SHAPE_CHECKED` from its import on, except while PyTorch traces a model."""
    jaxtyping.install_import_hook(SHAPE_CHECKED, f"{__name__}.checked")
    torch.onnx.export = _unchecked(torch.onnx.export)


def _unchecked(trace: Callable[_P, _R]) -> Callable[_P, _R]:
    """Tracing runs a model on symbolic sizes: comparing one of them with a number would fix it in the graph."""

    @functools.wraps(trace)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return trace(*args, **kwargs)
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)

    return run
