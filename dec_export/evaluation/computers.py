"""The choice of the computer of an evaluation: this process, or a cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from dec_export.evaluation.cluster import join
from dec_export.evaluation.computer import Computer, LocalComputer
from dec_export.evaluation.worker import Worker


def computer_for(worker: Worker, threads: int, cluster: str | None) -> AbstractContextManager[Computer]:
    """Return the computer in this process, or that of a cluster by its address."""
    if cluster is None:
        return nullcontext(LocalComputer(worker, threads))
    return join(worker, threads, cluster)
