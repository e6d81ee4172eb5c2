"""The throughput of a served model at full load, beside that of the same engine called directly."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dec_export.engines.base import Engine
from dec_export.errors import ServingError

from .clients import Pool, Server, run_clients
from .requests import Request, same_logits

# Two clients keep the server busy: one request waits while the other is answered.
CLIENTS = 2
TURNS = 3
# The tolerance is wide, because every answer has been compared with the bundle's own tolerance before.
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Comparison:
    """How throughput is compared. seconds: length of each measurement. batch: number of images in a request."""

    seconds: float
    batch: int = 8


@dataclass(frozen=True)
class Throughput:
    """Images per second of the served model and of the engine alone, and the ratio of the first to the second."""

    batch: int
    served: float
    direct: float
    ratio: float


def compare_rates(server: Server, engine: Engine, request: Request, comparison: Comparison) -> Throughput:
    """Measure the engine alone and the served model three times in turns; the rates are medians.

    request: a tensor of one image for the model, which is repeated to a batch.
    ServingError when the server gives an answer that is not right.
    """
    images = np.repeat(request.value, comparison.batch, axis=0)
    batch = replace(request, value=images, right=same_logits(engine(images)["logits"], TOLERANCE))
    served, direct = [], []
    for _ in range(TURNS):
        direct.append(direct_rate(engine, images, comparison.seconds))
        served.append(served_rate(server, batch, comparison.seconds))
    rates = float(np.median(served)), float(np.median(direct))
    return Throughput(comparison.batch, *rates, ratio=rates[0] / rates[1])


def served_rate(server: Server, request: Request, seconds: float) -> float:
    """Images per second of a served model that always has requests to answer."""
    start = time.perf_counter()
    tally = run_clients(CLIENTS, server, [Pool(1.0, [request])], time.monotonic() + seconds)
    took = time.perf_counter() - start
    if tally.wrong:
        raise ServingError(f"While throughput was measured, {tally.wrong[0]}.")
    return len(tally.seconds) * len(request.value) / took


def direct_rate(engine: Engine, images: NDArray[np.float32], seconds: float) -> float:
    """Images per second of the engine alone, which is called with the same batch again and again."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        engine(images)
        count += len(images)
    return count / (time.perf_counter() - start)
