"""Load a running Triton Inference Server with many clients, some of whose requests are bad, and watch it.

    dec-export triton BUNDLE --repository repo --device cpu        # then start the server on the folder repo
    python scripts/soak.py localhost:8000 --model digits --bundle BUNDLE --clients 8 --minutes 1 [--pid PID]

Every good answer is compared with that of the bundle's own engine, and every bad request must be refused. With --pid,
which names the server's process, the memory of that process, of its descendants and of /dev/shm is watched. With
--direct SECONDS, the throughput of the served model at full load is also compared with that of the same engine, which
is called in this process with the same batches, in turns.
The exit status is 1 when a good request failed or got a wrong answer, or when a bad one was accepted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dec_export.bundle.store import Bundle
from dec_export.data.images import list_images, packaged_photographs
from dec_export.engines import load
from dec_export.errors import DecExportError, ServingError
from dec_export.report.tables import key_values, table
from server_load.clients import Pool, Server, run_clients
from server_load.memory import MemorySample, MemoryWatch, growth
from server_load.requests import bad_requests, good_requests
from server_load.throughput import Comparison, Throughput, compare_rates

BAD_SHARE = 0.2


@dataclass(frozen=True)
class Load:
    """How many clients send requests, for how many seconds, and a folder of images to send.

    Without a folder, packaged photographs are sent.
    """

    clients: int = 8
    seconds: float = 60
    images: Path | None = None


@dataclass(frozen=True)
class SoakReport:
    """What happened, under the names that --json prints.

    latency_ms: percentiles of good requests. kinds: how often which request had which result. wrong: one sentence for
    each thing that must not happen. growth_bytes: how much the memory grew after the first minute; None for a run that
    was too short. throughput: None when it was not compared.
    """

    model: str
    protocol: str
    clients: int
    seconds: float
    good_per_second: float
    latency_ms: dict[str, float]
    kinds: dict[str, int]
    wrong: list[str]
    memory: list[MemorySample]
    growth_bytes: int | None
    throughput: Throughput | None


def soak(server: Server, bundle: Bundle, load_options: Load, comparison: Comparison | None = None) -> SoakReport:
    """Load the server and report what happened; `wrong` is empty when nothing happened that must not.

    ServingError when there are no images, or when throughput is compared and an answer is not right.
    """
    engine = load(bundle, "onnxruntime")
    paths = list_images(load_options.images) if load_options.images else packaged_photographs()
    if not paths:
        raise ServingError("There are no images to send: name a folder with --images.")
    good = good_requests(bundle, engine, server.model, paths)
    bad = bad_requests(good, paths[0])
    throughput = compare_rates(server, engine, good[1], comparison) if comparison else None
    watch = None if server.pid is None else MemoryWatch(server.pid)
    start = time.perf_counter()
    try:
        pools = [Pool(1 - BAD_SHARE, good), Pool(BAD_SHARE, bad)]
        tally = run_clients(load_options.clients, server, pools, time.monotonic() + load_options.seconds)
    finally:
        memory = watch.stop() if watch else []
    took = time.perf_counter() - start
    if not tally.seconds:
        tally.wrong.append("no good request was answered")
    return SoakReport(
        model=server.model,
        protocol=server.protocol,
        clients=load_options.clients,
        seconds=round(took, 1),
        good_per_second=len(tally.seconds) / took,
        latency_ms={f"p{p}": float(np.percentile(tally.seconds or [np.inf], p)) * 1e3 for p in (50, 90, 99, 100)},
        kinds=dict(sorted(tally.kinds.items())),
        wrong=tally.wrong,
        memory=memory,
        growth_bytes=growth(memory),
        throughput=throughput,
    )


def tables(report: SoakReport) -> Iterator[Table]:
    """The report for people; the memory is shown at about ten moments."""
    summary = {
        "good answers a second": f"{report.good_per_second:.1f}",
        "latency in ms": ", ".join(f"{name} {value:.0f}" for name, value in report.latency_ms.items()),
        "must not happen": "; ".join(report.wrong[:3]) or "nothing",
    }
    if report.growth_bytes is not None:
        summary["memory after the first minute"] = f"{report.growth_bytes / 1e6:+.1f} MB"
    rates = report.throughput
    if rates:
        summary["images a second"] = (
            f"served {rates.served:.1f}, direct {rates.direct:.1f}: {rates.ratio:.2f} of it, at batch {rates.batch}"
        )
    yield key_values(f"{report.model}, {report.clients} clients, {report.seconds} s, {report.protocol}", summary)
    yield table("Requests", ("kind: what happened", "count"), report.kinds.items(), numbers=("count",))
    memory = report.memory[:: max(1, len(report.memory) // 10)]
    rows = ((m.seconds, f"{m.private / 1e6:.0f}", f"{m.shared / 1e6:.0f}") for m in memory)
    columns = ("seconds", "private MB", "shared MB")
    yield table("Memory of the server", columns, rows, numbers=columns[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server as HOST:PORT")
    parser.add_argument("--model", required=True, help="name of the model that the repository was written with")
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle that the server serves")
    parser.add_argument(
        "--protocol", default="http", choices=("http", "grpc"), help="protocol of the address (default: http)"
    )
    parser.add_argument("--clients", type=int, default=8, help="number of clients (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=1, help="how long the clients send requests (default: %(default)s)"
    )
    parser.add_argument("--images", type=Path, help="folder of images to send (default: packaged photographs)")
    parser.add_argument("--pid", type=int, help="process of the server, whose memory is watched")
    parser.add_argument(
        "--direct",
        type=float,
        default=0,
        metavar="SECONDS",
        help="compare the throughput with that of the engine itself; each measurement takes SECONDS",
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="number of images in a request of that comparison (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def main() -> None:
    """Run the command."""
    options = _parser().parse_args()
    server = Server(options.url, options.model, options.protocol, options.pid)
    load_options = Load(options.clients, 60 * options.minutes, options.images)
    comparison = Comparison(options.direct, options.batch) if options.direct else None
    try:
        report = soak(server, Bundle.load(options.bundle), load_options, comparison)
    except DecExportError as error:
        sys.exit(str(error))
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        Console().print(*tables(report), sep="\n")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
