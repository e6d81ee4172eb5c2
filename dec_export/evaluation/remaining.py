"""The progress of an evaluation: how many images are finished, and an estimate of the time that the others take."""

from __future__ import annotations

import time

from dec_export.progress import tell

# People cannot read faster; seconds.
_PAUSE = 0.1


class Clock:
    """Reports finished images. images: of the whole evaluation. kept: those that were finished before."""

    def __init__(self, images: int, kept: int = 0) -> None:
        self._images, self._kept = images, kept
        self._new = 0
        self._begin = time.monotonic()
        self._told = -_PAUSE

    def tell(self, images: int) -> None:
        """Report that some more images are finished."""
        self._new += images
        now = time.monotonic()
        if now - self._told < _PAUSE:
            return
        self._told = now
        left = self._images - self._kept - self._new
        seconds = left * (now - self._begin) / self._new
        tell(f"{self._kept + self._new:,} finished, about {in_words(seconds)} left")


def in_words(seconds: float) -> str:
    """Return a time in the unit that people would use for it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
