"""Clients that send requests to a server until their time is over, and the count of what happened."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dec_export.errors import ServingError
from dec_export.serving.triton.client import Client, connect

from .requests import Request


@dataclass(frozen=True)
class Server:
    """A running server. url: HOST:PORT. model: the model that its repository was written with. protocol: http or grpc.

    pid: the server's process on this machine, if its memory is to be watched.
    """

    url: str
    model: str
    protocol: str = "http"
    pid: int | None = None


@dataclass(frozen=True)
class Pool:
    """Requests from which a client chooses, and the probability that it chooses from this pool."""

    probability: float
    requests: Sequence[Request]


@dataclass
class Tally:
    """What happened.

    seconds: how long each good request took. kinds: how often which request had which result. wrong: one sentence for
    each thing that must not happen.
    """

    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run_clients(count: int, server: Server, pools: Sequence[Pool], until: float) -> Tally:
    """Let `count` clients send requests at once, until the time `until` of time.monotonic()."""
    tally = Tally()
    threads = [
        threading.Thread(target=run_client, args=(server, pools, until, seed, tally), name=f"client {seed}")
        for seed in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def run_client(server: Server, pools: Sequence[Pool], until: float, seed: int, tally: Tally) -> None:
    """Send requests that are chosen at random, until the time `until` of time.monotonic()."""
    client, generator = connect(server.url, server.protocol), np.random.default_rng(seed)
    probabilities = [pool.probability for pool in pools]
    try:
        while time.monotonic() < until:
            requests = pools[int(generator.choice(len(pools), p=probabilities))].requests
            send(client, requests[int(generator.integers(len(requests)))], tally)
    finally:
        client.close()


def send(client: Client, request: Request, tally: Tally) -> None:
    """Send one request and count what happened."""
    start = time.perf_counter()
    verdict = judged(client, request)
    seconds = time.perf_counter() - start
    with tally.lock:
        tally.kinds[f"{request.kind}: {verdict.split(':')[0]}"] += 1
        if verdict == "right":
            tally.seconds.append(seconds)
        elif verdict != "refused":
            tally.wrong.append(f"{request.kind} was {verdict}")


def judged(client: Client, request: Request) -> str:
    """Send one request. The result is "right" or "refused" if that was due, and otherwise says what happened."""
    try:
        answer = client.infer(request.model, request.name, request.value, request.outputs)
        if request.right is None:
            return "accepted"
        return "right" if request.right(answer) else "wrong"
    except ServingError as error:
        expected = request.right is None and request.refusal in str(error)
        return "refused" if expected else f"failed: {error}"
    except (
        Exception
    ) as error:  # An answer that cannot be read may raise anything; the client must live on and count it.
        return f"unreadable: {type(error).__name__}: {error}"
