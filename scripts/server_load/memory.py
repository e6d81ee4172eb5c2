"""How much memory a process and its descendants hold, read from Linux's /proc, and whether it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_SECONDS = 1.0
# Memory that grows after this time is a leak.
SETTLED_SECONDS = 60.0


@dataclass(frozen=True)
class MemorySample:
    """Memory at one moment.

    seconds: time since the start. private: bytes that the processes do not share with others. shared: bytes of the
    files in /dev/shm.
    """

    seconds: float
    private: int
    shared: int


class MemoryWatch:
    """A thread that samples the memory of a process once a second until it is stopped."""

    def __init__(self, pid: int) -> None:
        self.samples: list[MemorySample] = []
        self._pid, self._start, self._ended = pid, time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch")
        self._thread.start()

    def stop(self) -> list[MemorySample]:
        """End the thread; the samples are returned."""
        self._ended.set()
        self._thread.join()
        return self.samples

    def _run(self) -> None:
        while not self._ended.is_set():
            self.samples.append(memory_of(self._pid, round(time.perf_counter() - self._start, 1)))
            self._ended.wait(SAMPLE_SECONDS)


def memory_of(pid: int, seconds: float) -> MemorySample:
    """The memory of a process and its descendants, and of /dev/shm, taken `seconds` after the start."""
    pids, children = [pid], _children()
    for parent in pids:
        pids += children.get(parent, [])
    private = sum(_private_bytes(each) for each in pids)
    shared = sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob("*") if path.is_file())  # noqa: S108
    return MemorySample(seconds, private, shared)


def growth(memory: Sequence[MemorySample]) -> int | None:
    """By how many bytes private and shared memory grew after the first minute.

    It is the mean of the last ten samples less that of the first ten; None when there are fewer than twenty.
    """
    settled = [sample.private + sample.shared for sample in memory if sample.seconds >= SETTLED_SECONDS]
    if len(settled) < 20:
        return None
    return int(np.mean(settled[-10:]) - np.mean(settled[:10]))


def _children() -> dict[int, list[int]]:
    """The children of every process of this machine."""
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # The process has just ended.
            continue
        found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return found


def _private_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # The process has just ended, or belongs to another user.
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
