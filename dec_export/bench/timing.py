"""Interleaved timing: a drift of the machine meets every subject alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Idle threads of one runtime may spin for a while, on cores that the next one needs.
_PAUSE = 0.05


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: median, and the quartiles, smallest and largest of `runs`."""

    median: float
    quartile_low: float
    quartile_high: float
    smallest: float
    largest: float
    runs: int


def interleave(subjects: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round for every subject, in turn; each timed run follows a pause and a run that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, run in subjects.items():
            time.sleep(_PAUSE)
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: list[float]) -> Timing:
    """Median and spread."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Timing(statistics.median(seconds), low, high, min(seconds), max(seconds), len(seconds))


def ratio(seconds: list[float], baseline: list[float]) -> float:
    """Median over the rounds of this subject's time over the baseline's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, baseline, strict=True))
