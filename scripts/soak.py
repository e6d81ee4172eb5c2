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

from dec_export.bundle.store import Bundle
from dec_export.data.images import list_images, open_image, packaged_photographs
from dec_export.engines import Engine, load
from dec_export.errors import DecExportError, ServingError
from dec_export.report.tables import key_values, table
from dec_export.serving.triton.check import encoded, prepared
from dec_export.serving.triton.client import Client, connect
from dec_export.serving.triton.judge import distance, expected_logits, same_answer, tolerance_of
from dec_export.serving.triton.options import TOP_K
from dec_export.tasks import Task, task_named

BAD_SHARE = 0.2
SAMPLE_SECONDS = 1.0
# From here on, memory that grows is a leak.
SETTLED_SECONDS = 60.0

Judge = Callable[[dict[str, Any]], bool]


def bomb(width: int = 10_000, height: int = 5_000) -> bytes:
    """A PNG of 50 megapixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Request:
    """What is sent, and what must come back: an answer that `right` accepts, or else an error with these words."""

    kind: str
    model: str
    name: str
    value: NDArray[Any]
    outputs: tuple[str, ...]
    right: Judge | None = None
    refusal: str = ""


@dataclass
class Tally:
    """What happened. seconds: of good requests. wrong: one sentence for each thing that must not happen."""

    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def good_requests(bundle: Bundle, engine: Engine, model: str, paths: Sequence[Path]) -> list[Request]:
    """Each image, encoded for the ensemble and prepared for the model, with the engine's answer."""
    found, tolerance = [], tolerance_of(bundle)
    task, recipe = task_named(bundle.recipe.task), bundle.recipe
    ensemble = f"{model}_{task.ensemble}"
    answers = task.answers(min(TOP_K, recipe.backbone.num_classes), recipe.backbone.image_size)
    outputs = tuple(answer.name for answer in answers)
    for path in paths:
        image, content = prepared(bundle.preprocessing, path), encoded(path.read_bytes())
        expected = expected_logits(engine, image)
        found.append(Request("image", ensemble, "encoded", content, outputs, _answers(task, expected[0], tolerance)))
        found.append(Request("tensor", model, "image", image, ("logits",), _logits(expected, tolerance)))
    return found


def _answers(task: Task, expected: NDArray[Any], tolerance: float) -> Judge:
    return lambda answer: same_answer(task, answer, expected, tolerance)


def _logits(expected: NDArray[Any], tolerance: float) -> Judge:
    return lambda answer: distance(answer["logits"], expected) <= tolerance


def bad_requests(good: Sequence[Request], path: Path) -> list[Request]:
    """A truncated JPEG, a wrong shape, NaN in an image, and an image of 50 megapixels, each with its refusal."""
    image, tensor = good[0], good[1]
    buffer = io.BytesIO()
    open_image(path).save(buffer, "JPEG")
    cut = encoded(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    poisoned = tensor.value.copy()
    # Not the first pixel, which a warp that clamps NaN coordinates to the corner reads everywhere.
    poisoned[0, 2, poisoned.shape[2] // 2, poisoned.shape[3] // 3] = np.nan
    narrower = np.ascontiguousarray(tensor.value[..., 1:])
    return [
        Request("truncated JPEG", image.model, "encoded", cut, image.outputs, refusal="not a whole JPEG or PNG"),
        Request("50 megapixels", image.model, "encoded", encoded(bomb()), image.outputs, refusal="pixels"),
        Request("wrong shape", tensor.model, "image", narrower, tensor.outputs, refusal="unexpected shape"),
        Request("NaN", tensor.model, "image", poisoned, tensor.outputs, refusal="NaN"),
    ]


Pools = Sequence[tuple[float, Sequence[Request]]]


def work(url: str, protocol: str, pools: Pools, until: float, seed: int, tally: Tally) -> None:
    """One client: until the time is over, requests from pools that are chosen with these probabilities."""
    client, generator = connect(url, protocol), np.random.default_rng(seed)
    shares = [share for share, _ in pools]
    try:
        while time.monotonic() < until:
            _, pool = pools[int(generator.choice(len(pools), p=shares))]
            send(client, pool[int(generator.integers(len(pool)))], tally)
    finally:
        client.close()


def send(client: Client, request: Request, tally: Tally) -> None:
    """One request, counted."""
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
    """Right or refused, whichever was due, or what happened instead; no client dies of an answer."""
    try:
        answer = client.infer(request.model, request.name, request.value, request.outputs)
        if request.right is None:
            return "accepted"
        return "right" if request.right(answer) else "wrong"
    except ServingError as error:
        expected = request.right is None and request.refusal in str(error)
        return "refused" if expected else f"failed: {error}"
    except Exception as error:
        return f"unreadable: {type(error).__name__}: {error}"


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


def growth(memory: Sequence[dict[str, float]]) -> int | None:
    """By how much private and shared memory grew after the first minute: the last ten samples less the first ten."""
    settled = [m["private"] + m["shared"] for m in memory if m["seconds"] >= SETTLED_SECONDS]
    if len(settled) < 20:
        return None
    return int(np.mean(settled[-10:]) - np.mean(settled[:10]))


# --- throughput ------------------------------------------------------------------------------------------------------


def served_rate(url: str, protocol: str, requests: Sequence[Request], clients: int, seconds: float) -> float:
    """Images a second of a saturated model, asked by so many clients at once."""
    tally, until = Tally(), time.monotonic() + seconds
    start = time.perf_counter()
    _in_threads(clients, lambda i: work(url, protocol, [(1.0, requests)], until, i, tally))
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
    full = Request("tensor", request.model, "image", images, ("logits",), _logits(engine(images)["logits"], 1e-2))
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
    if not paths:
        raise ServingError("There are no images to send: name a folder with --images.")
    good = good_requests(bundle, engine, model, paths)
    bad = bad_requests(good, paths[0])
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
    pools = [(1 - BAD_SHARE, good), (BAD_SHARE, bad)]
    _in_threads(clients, lambda i: work(url, protocol, pools, until, i, tally))
    watcher.join()
    if not tally.seconds:
        tally.wrong.append("no good request was answered")
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
        "growth_bytes": growth(memory),
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
    if facts["growth_bytes"] is not None:
        summary["memory after the first minute"] = f"{facts['growth_bytes'] / 1e6:+.1f} MB"
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
