"""Load a running Triton Inference Server with many clients, some of whose requests are bad, and watch it.

    dec-export triton BUNDLE --repository repo --device cpu        # and start the server on repo
    python scripts/soak.py localhost:8000 --model digits --bundle BUNDLE --clients 8 --minutes 1 [--pid PID]

Every good answer is compared with the bundle's own engine, every bad request must be refused. `--pid` is the server's:
its memory, that of its processes, and /dev/shm are then watched. `--direct SECONDS` also compares the saturated
throughput of the served model with that of the same engine, called here with the same batches, in turns.
Exit 1 when a good request failed or got a wrong answer, or a bad one was accepted.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dec_export.bundle import Bundle
from dec_export.engines.base import Engine, load
from dec_export.errors import DecExportError, ServingError
from dec_export.images import list_images, open_image, packaged_photographs
from dec_export.render import key_values, table
from dec_export.serving.check import Client, connect
from dec_export.serving.models import ENSEMBLES

BAD_SHARE = 0.2
SAMPLE_SECONDS = 1.0
# Batches of other sizes may add up in another order: float32's unit roundoff, amplified.
TOLERANCE = 1e-3


def bomb(width: int = 10_000, height: int = 5_000) -> bytes:
    """A PNG of 50 megapixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Request:
    """What is sent, and what must come back: an answer that `right` accepts, or, without it, a refusal."""

    kind: str
    model: str
    name: str
    value: NDArray[Any]
    outputs: tuple[str, ...]
    right: Callable[[dict[str, NDArray[Any]]], bool] | None = None


@dataclass
class Tally:
    """What happened. seconds: of good requests. wrong: one sentence for each thing that must not happen."""

    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def good_requests(bundle: Bundle, engine: Engine, model: str, paths: Sequence[Path]) -> list[Request]:
    """Each image, encoded for the ensemble and prepared for the model, with the engine's answer."""
    found = []
    for path in paths:
        image = bundle.preprocessing.apply(open_image(path))[None]
        expected = engine(np.repeat(image, engine.smallest_batch, axis=0))["logits"][:1]
        encoded = np.array([[path.read_bytes()]], dtype=object)
        ensemble = f"{model}_{ENSEMBLES[bundle.recipe.task]}"
        output = "class_map" if bundle.recipe.task == "segmentation" else "classes"
        found.append(Request("image", ensemble, "encoded", encoded, (output,), _same_classes(output, expected)))
        found.append(Request("tensor", model, "image", image, ("logits",), _same_logits(expected)))
    return found


def _same_classes(output: str, expected: NDArray[Any]) -> Callable[[dict[str, NDArray[Any]]], bool]:
    def right(answer: dict[str, NDArray[Any]]) -> bool:
        found, wanted = answer[output], expected.argmax(axis=1)
        # Where two classes are equal but for rounding, either is right.
        chosen = found if output == "class_map" else found[:, 0]
        margin = expected.max(axis=1) - np.take_along_axis(expected, chosen[:, None].astype(np.int64), axis=1)[:, 0]
        return chosen.shape == wanted.shape and bool((margin <= TOLERANCE * np.abs(expected).max()).all())

    return right


def _same_logits(expected: NDArray[Any]) -> Callable[[dict[str, NDArray[Any]]], bool]:
    def right(answer: dict[str, NDArray[Any]]) -> bool:
        found = answer["logits"]
        return found.shape == expected.shape and bool(
            np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
        )

    return right


def bad_requests(good: Sequence[Request]) -> list[Request]:
    """A truncated JPEG, a wrong shape, NaN in an image, and an image of 50 megapixels."""
    image, tensor = good[0], good[1]
    buffer = io.BytesIO()
    open_image_bytes(image).save(buffer, "JPEG")
    poisoned = tensor.value.copy()
    poisoned[0, 0, 0, 0] = np.nan
    return [
        Request("truncated JPEG", image.model, "encoded", as_bytes(buffer.getvalue()[:2000]), image.outputs),
        Request("50 megapixels", image.model, "encoded", as_bytes(bomb()), image.outputs),
        Request("wrong shape", tensor.model, "image", np.ascontiguousarray(tensor.value[..., 1:]), tensor.outputs),
        Request("NaN", tensor.model, "image", poisoned, tensor.outputs),
    ]


def open_image_bytes(request: Request) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(request.value[0, 0])).convert("RGB")


def as_bytes(content: bytes) -> NDArray[Any]:
    return np.array([[content]], dtype=object)


def work(
    url: str, protocol: str, good: Sequence[Request], bad: Sequence[Request], until: float, seed: int, tally: Tally
) -> None:
    """One client: random requests until the time is over."""
    client, generator = connect(url, protocol), np.random.default_rng(seed)
    try:
        while time.monotonic() < until:
            pool = bad if generator.random() < BAD_SHARE else good
            send(client, pool[int(generator.integers(len(pool)))], tally)
    finally:
        client.close()


def send(client: Client, request: Request, tally: Tally) -> None:
    """One request, counted."""
    start = time.perf_counter()
    try:
        answer = client.infer(request.model, request.name, request.value, request.outputs)
        verdict = "accepted" if request.right is None else "right" if request.right(answer) else "wrong"
    except ServingError as error:
        verdict, answer = ("refused", {}) if request.right is None else (f"failed: {error}", {})
    seconds = time.perf_counter() - start
    with tally.lock:
        tally.kinds[f"{request.kind}: {verdict.split(':')[0]}"] += 1
        if verdict == "right":
            tally.seconds.append(seconds)
        elif verdict != "refused":
            tally.wrong.append(f"{request.kind} was {verdict}")


# --- memory ----------------------------------------------------------------------------------------------------------


def memory_of(pid: int) -> dict[str, int]:
    """Bytes that a process and its descendants hold for themselves, and that lie in /dev/shm."""
    pids, children = [pid], _children()
    for parent in pids:
        pids += children.get(parent, [])
    private = sum(_private_bytes(each) for each in pids)
    shared = sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob("*") if path.is_file())  # noqa: S108
    return {"private": private, "shared": shared}


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        found.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return found


def _private_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


# --- throughput ------------------------------------------------------------------------------------------------------


def served_rate(url: str, protocol: str, requests: Sequence[Request], clients: int, seconds: float) -> float:
    """Images a second of a saturated model, asked by so many clients at once."""
    tally, until = Tally(), time.monotonic() + seconds
    start = time.perf_counter()
    _in_threads(clients, lambda i: work(url, protocol, [requests[i % len(requests)]], requests, until, i, tally))
    took = time.perf_counter() - start
    if tally.wrong:
        raise ServingError(f"While throughput was measured, {tally.wrong[0]}.")
    return len(tally.seconds) * len(requests[0].value) / took


def direct_rate(engine: Engine, images: NDArray[np.float32], seconds: float) -> float:
    """Images a second of the engine alone, called with the same batch again and again."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        engine(images)
        count += len(images)
    return count / (time.perf_counter() - start)


def compare_rates(
    url: str, protocol: str, engine: Engine, request: Request, batch: int, seconds: float
) -> dict[str, float]:
    """Served and direct, in turns, each three times; the medians, and their ratio."""
    images = np.repeat(request.value, batch, axis=0)
    expected = engine(images)["logits"]
    full = Request("tensor", request.model, "image", images, ("logits",), _same_logits(expected))
    served, direct = [], []
    for _ in range(3):
        direct.append(direct_rate(engine, images, seconds))
        served.append(served_rate(url, protocol, [full], 2, seconds))
    found = {"batch": batch, "served": float(np.median(served)), "direct": float(np.median(direct))}
    return {**found, "ratio": found["served"] / found["direct"]}


def _in_threads(count: int, target: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=target, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- the whole -------------------------------------------------------------------------------------------------------


def soak(
    url: str,
    model: str,
    bundle: Bundle,
    *,
    protocol: str = "http",
    clients: int = 8,
    seconds: float = 60,
    images: Path | None = None,
    pid: int | None = None,
    direct: float = 0,
    batch: int = 8,
) -> dict[str, Any]:
    """Run it all; returns what is printed. `wrong` is empty when nothing happened that must not."""
    engine = load(bundle, "onnxruntime")
    paths = list_images(images) if images else packaged_photographs()
    good = good_requests(bundle, engine, model, paths)
    bad = bad_requests(good)
    rates = compare_rates(url, protocol, engine, good[1], batch, direct) if direct else None
    tally, memory = Tally(), []
    until = time.monotonic() + seconds
    start = time.perf_counter()

    def watch(_: int) -> None:
        while pid is not None and time.monotonic() < until:
            memory.append({"seconds": round(time.perf_counter() - start, 1), **memory_of(pid)})
            time.sleep(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch, args=(0,))
    watcher.start()
    _in_threads(clients, lambda i: work(url, protocol, good, bad, until, i, tally))
    watcher.join()
    took = time.perf_counter() - start
    return {
        "model": model,
        "protocol": protocol,
        "clients": clients,
        "seconds": round(took, 1),
        "good_per_second": len(tally.seconds) / took,
        "latency_ms": {f"p{p}": float(np.percentile(tally.seconds or [np.inf], p)) * 1e3 for p in (50, 90, 99, 100)},
        "kinds": dict(sorted(tally.kinds.items())),
        "wrong": tally.wrong,
        "memory": memory,
        "throughput": rates,
    }


def tables(facts: dict[str, Any]) -> list[Any]:
    """The facts for people; memory at ten moments."""
    latency = ", ".join(f"{name} {value:.0f}" for name, value in facts["latency_ms"].items())
    rates = facts["throughput"]
    summary = {
        "good answers a second": f"{facts['good_per_second']:.1f}",
        "latency in ms": latency,
        "must not happen": "; ".join(facts["wrong"][:3]) or "nothing",
    }
    if rates:
        summary["images a second"] = (
            f"served {rates['served']:.1f}, direct {rates['direct']:.1f}: "
            f"{rates['ratio']:.2f} of it, at batch {rates['batch']}"
        )
    memory = facts["memory"][:: max(1, len(facts["memory"]) // 10)]
    rows = ((m["seconds"], f"{m['private'] / 1e6:.0f}", f"{m['shared'] / 1e6:.0f}") for m in memory)
    return [
        key_values(f"{facts['model']}, {facts['clients']} clients, {facts['seconds']} s, {facts['protocol']}", summary),
        table("Requests", ("kind: what happened", "count"), facts["kinds"].items(), numbers=("count",)),
        table(
            "Memory of the server", ("seconds", "private MB", "shared MB"), rows, numbers=("private MB", "shared MB")
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="HOST:PORT of the server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--protocol", default="http", choices=("http", "grpc"))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    parser.add_argument("--direct", type=float, default=0, metavar="SECONDS", help="compare with the engine itself")
    parser.add_argument("--batch", type=int, default=8, help="of that comparison")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        facts = soak(
            options.url,
            options.model,
            Bundle.load(options.bundle),
            protocol=options.protocol,
            clients=options.clients,
            seconds=60 * options.minutes,
            images=options.images,
            pid=options.pid,
            direct=options.direct,
            batch=options.batch,
        )
    except DecExportError as error:
        sys.exit(str(error))
    if options.json:
        print(json.dumps(facts))
    else:
        Console().print(*tables(facts), sep="\n")
    sys.exit(1 if facts["wrong"] else 0)


if __name__ == "__main__":
    main()
