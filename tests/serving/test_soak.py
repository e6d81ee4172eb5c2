"""The soak notices what must not happen, and a right server does nothing of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dec_export.serving.triton.client import connect
from tests.serving.conftest import Served
from tests.serving.server import needs_server

pytestmark = needs_server


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # dataclasses look their module up by its name
    spec.loader.exec_module(module)
    return module


def test_a_right_server_survives_bad_requests(script: ModuleType, served: Served) -> None:
    facts = script.soak(served.server.http_url, "digits", served.digits, clients=6, seconds=4, pid=served.server.pid)
    assert facts["wrong"] == []
    kinds = {tuple(kind.split(": ")) for kind in facts["kinds"]}
    assert {("image", "right"), ("tensor", "right")} <= kinds
    assert {kind for kind, what in kinds if what == "refused"} <= {
        *("truncated JPEG", "50 megapixels", "wrong shape", "NaN")
    }
    assert len(kinds) >= 5
    assert facts["good_per_second"] > 0
    assert all(sample["private"] > 1e6 for sample in facts["memory"])


def test_wrong_answers_failures_and_accepted_faults_are_counted(script: ModuleType, served: Served) -> None:
    image = np.zeros((1, 3, 64, 64), np.float32)
    client = connect(served.server.http_url, "http")
    tally = script.Tally()
    try:
        for request in (
            script.Request("tensor", "digits", "image", image, ("logits",), lambda _: True),
            script.Request("tensor", "digits", "image", image, ("logits",), lambda _: False),
            script.Request("tensor", "nobody", "image", image, ("logits",), lambda _: True),
            script.Request("tensor", "digits", "image", image, ("logits",), lambda answer: answer["nothing"]),
            script.Request("NaN", "digits", "image", image, ("logits",), refusal="NaN"),
            script.Request("NaN", "digits", "image", image * np.nan, ("logits",), refusal="NaN"),
            script.Request("NaN", "nobody", "image", image * np.nan, ("logits",), refusal="NaN"),
        ):
            script.send(client, request, tally)
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


def test_memory_that_grows_is_seen_after_the_first_minute(script: ModuleType) -> None:
    steady = [{"seconds": s, "private": 5_000_000 if s < 60 else 8_000_000, "shared": 0} for s in range(120)]
    assert script.growth(steady) == 0
    leaking = [{"seconds": s, "private": 1000 * s, "shared": 0} for s in range(120)]
    assert script.growth(leaking) == 50_000
    assert script.growth(steady[:70]) is None
