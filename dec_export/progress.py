"""The progress of long work. A caller of the library may listen to it, and no function passes a listener on.

with dec_export.progress.reporting(print):
    dec_export.build("deit_s", out="deit_s")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# A listener gets a step's name, and None when the step begins or its seconds when it ends.
Listener = Callable[[str, "float | None"], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("progress", default=None)
_STEP: ContextVar[str | None] = ContextVar("step", default=None)


@contextmanager
def reporting(listener: Listener | None) -> Iterator[None]:
    """Report every step inside the block to `listener`; with None, no step is reported."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(detail: str) -> None:
    """Report a detail of a long step, after the name of the current step."""
    name = _STEP.get()
    _report(detail if name is None else f"{name}: {detail}", None)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Report the beginning and the end of a step. The end of a step that raises an error is not reported."""
    _report(name, None)
    start = time.perf_counter()
    token = _STEP.set(name)
    try:
        yield
    finally:
        _STEP.reset(token)
    _report(name, time.perf_counter() - start)


def _report(name: str, seconds: float | None) -> None:
    listener = _LISTENER.get()
    if listener is not None:
        listener(name, seconds)
