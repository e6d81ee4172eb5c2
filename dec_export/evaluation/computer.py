"""Where chunks are computed: in this process, or on a cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

from dec_export.evaluation.ahead import ahead
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.environment import Environment, environment_of
from dec_export.evaluation.worker import Worker

# The prepared inputs that wait for the engines: one is enough to keep them busy, and a second one evens the pace.
_PREPARED_AHEAD = 2


class Computer(Protocol):
    """Computes the chunks of a plan."""

    def environment(self) -> Environment:
        """Load the models, and return the environment in which they run."""
        ...

    def chunks(self, starts: Sequence[int], *, ordered: bool = False) -> Generator[Chunk, None, None]:
        """Return the chunks that begin at these images, as soon as each is finished, or in this order if `ordered`."""
        ...


class LocalComputer:
    """Computes chunks in this process: images are decoded in `threads` threads while the engines run."""

    def __init__(self, worker: Worker, threads: int) -> None:
        self._worker, self._threads = worker, threads

    def environment(self) -> Environment:
        return environment_of(self._worker.models)

    def chunks(self, starts: Sequence[int], *, ordered: bool = False) -> Generator[Chunk, None, None]:  # noqa: ARG002 - always are
        # The threads that decode need the models' preprocessing, so the models are loaded before.
        assert self._worker.models
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                with closing(ahead(self._worker.stages(starts, pool), _PREPARED_AHEAD)) as stages:
                    yield from self._worker.chunks(stages)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
