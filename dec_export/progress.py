"""Progress of long work: whoever calls the library may listen, and no function has to pass a listener on.

with dec_export.progress.reporting(print):
    dec_export.build("deit_s", out="deit_s")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Called with a step's name, and None when it begins or the seconds that it took when it ends.
Listener = Callable[[str, "float | None"], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("progress", default=None)
_STEP: ContextVar[str | None] = ContextVar("step", default=None)


@contextmanager
def reporting(listener: Listener | None) -> Iterator[None]:
    """Let `listener` hear of every step inside the block; None silences them."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(detail: str) -> None:
    """Report what a long step is doing; inside a step, its name is put before the detail."""
    name = _STEP.get()
    _report(detail if name is None else f"{name}: {detail}", None)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Report the beginning and the end of a step; a step that raises has no end."""
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
