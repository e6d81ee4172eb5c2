"""Timing in turns, so that a change of the machine's speed affects every subject equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Idle threads of one runtime may spin for some time on cores that the next runtime needs.
_PAUSE = 0.05


@dataclass(frozen=True)
class Timing:
    """The seconds of one run: the median, the quartiles, the smallest and the largest of `runs` values."""

    median: float
    quartile_low: float
    quartile_high: float
    smallest: float
    largest: float
    runs: int


def interleave(subjects: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time all subjects in turns, and return the seconds of every round. A pause and a warm-up precede a timed run."""
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
    """Return the median, the quartiles and the range of these seconds."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Timing(statistics.median(seconds), low, high, min(seconds), max(seconds), len(seconds))


def ratio(seconds: list[float], baseline: list[float]) -> float:
    """Return the median, over the rounds, of this subject's time divided by the baseline's time in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, baseline, strict=True))
