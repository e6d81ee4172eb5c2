"""The soak test detects faults of a server, and a correct server passes it."""

from __future__ import annotations

import numpy as np

from dec_export.serving.triton.client import connect
from server_load.clients import Server, Tally, send
from server_load.memory import MemorySample, growth
from server_load.requests import Request
from server_load.throughput import Comparison
from soak import Load, soak, tables
from tests.serving.conftest import Served
from tests.serving.server import needs_server

pytestmark = needs_server


def test_a_right_server_survives_bad_requests(served: Served) -> None:
    server = Server(served.server.http_url, "digits", pid=served.server.pid)
    report = soak(server, served.digits, Load(clients=6, seconds=4), Comparison(seconds=0.2, batch=2))
    assert report.wrong == []
    kinds = {tuple(kind.split(": ")) for kind in report.kinds}
    assert {("image", "right"), ("tensor", "right")} <= kinds
    assert {kind for kind, what in kinds if what == "refused"} <= {
        *("truncated JPEG", "50 megapixels", "wrong shape", "NaN")
    }
    assert len(kinds) >= 5
    assert report.good_per_second > 0
    assert len(report.memory) >= 3
    assert all(sample.private > 1e6 for sample in report.memory)
    assert report.throughput is not None
    assert report.throughput.ratio == report.throughput.served / report.throughput.direct > 0
    assert [shown.row_count for shown in tables(report)] == [4, len(kinds), len(report.memory)]


def test_wrong_answers_failures_and_accepted_faults_are_counted(served: Served) -> None:
    image = np.zeros((1, 3, 64, 64), np.float32)
    client = connect(served.server.http_url, "http")
    tally = Tally()
    try:
        for request in (
            Request("tensor", "digits", "image", image, ("logits",), lambda _: True),
            Request("tensor", "digits", "image", image, ("logits",), lambda _: False),
            Request("tensor", "nobody", "image", image, ("logits",), lambda _: True),
            Request("tensor", "digits", "image", image, ("logits",), lambda answer: answer["nothing"]),
            Request("NaN", "digits", "image", image, ("logits",), refusal="NaN"),
            Request("NaN", "digits", "image", image * np.nan, ("logits",), refusal="NaN"),
            Request("NaN", "nobody", "image", image * np.nan, ("logits",), refusal="NaN"),
        ):
            send(client, request, tally)
    finally:
        client.close()
    assert dict(tally.kinds) == {
        "tensor: right": 1,
        "tensor: wrong": 1,
        "tensor: failed": 1,
        "tensor: unreadable": 1,
        "NaN: accepted": 1,
        "NaN: refused": 1,
        "NaN: failed": 1,
    }
    assert len(tally.seconds) == 1
    assert [sentence.split()[0] for sentence in tally.wrong] == ["tensor", "tensor", "tensor", "NaN", "NaN"]


def test_memory_that_grows_is_seen_after_the_first_minute() -> None:
    steady = [MemorySample(s, 5_000_000 if s < 60 else 8_000_000, shared=0) for s in range(120)]
    assert growth(steady) == 0
    leaking = [MemorySample(s, 1000 * s, shared=0) for s in range(120)]
    assert growth(leaking) == 50_000
    assert growth(steady[:70]) is None
