"""A generator that runs ahead of its consumer in another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int) -> Generator[Item, None, None]:
    """Yield the items, which are computed in another thread up to `count` ahead; an error reaches the consumer.

    Close the generator (`contextlib.closing`) to wait for the item that is being computed when the consumer stops.
    """
    with ThreadPoolExecutor(1) as thread:
        # One thread, so `next` is never called twice at once.
        waiting: deque[Future[Item | None]] = deque(thread.submit(next, items, None) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
