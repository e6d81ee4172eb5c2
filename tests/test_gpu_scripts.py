"""The parts of the GPU checks that need no GPU: what a build's output becomes in the table, and which limit binds."""

from __future__ import annotations

import pytest

from dec_plugins.cost import Cost
from gpu_check import COLUMNS, Case, row_of
from gpu_solver import Peaks, limit_of

UNROLLED = Case("tensorrt", "unroll", "fp16", "fp32")
PLUGIN = Case("tensorrt", "plugin", "fp32", "fp16")


def built(**changes: object) -> dict[str, object]:
    """What `dec-export build --json` prints of an engine that failed its gate."""
    report = {
        "gate": "fail",
        "outputs": {"logits": {"ratio": 1.234}},
        "phi": {"phi_0_x": {"ratio": 0.5}, "phi_1_x": {"ratio": 2.5}},
        "top1_agreement": 0.995,
        "engine_details": {"runtime": "TensorRT", "version": "10.9"},
        "failures": ["phi_1_x is too far"],
    }
    facts = {"plans": {}, "engines": {}, "parity": {"engines": {"tensorrt": report}}, "seconds": 12.3}
    return {**facts, **changes}


def test_a_proved_engine_has_the_numbers_of_its_gate() -> None:
    row = row_of(UNROLLED, built()).as_json()
    assert row == {
        "engine": "tensorrt",
        "solver": "unroll",
        "precision": "fp16, fp32",
        "gate": "fail",
        "logits, ratio": "1.23",
        "worst phi, ratio": "2.50",
        "top-1": "100%",
        "seconds": "12",
        "detail": "TensorRT 10.9; phi_1_x is too far",
    }
    assert tuple(row) == COLUMNS


@pytest.mark.parametrize(
    ("case", "facts", "gate", "detail"),
    [
        (UNROLLED, {"error": "no such recipe"}, "error", "no such recipe"),
        (UNROLLED, built(parity=None, engines={"tensorrt": {"reason": "no GPU"}}), "not run", "no GPU"),
        (PLUGIN, built(), "no plugin", "the engine was not built"),
        (PLUGIN, built(plans={"tensorrt": {"plugin": {"used": False, "detail": "too old"}}}), "no plugin", "too old"),
    ],
)
def test_an_engine_without_a_verdict_has_the_reason(case: Case, facts: dict, gate: str, detail: str) -> None:
    row = row_of(case, facts)
    assert (row.gate, row.detail, row.numbers) == (gate, detail, {})


def test_an_engine_that_uses_the_plugin_has_a_verdict() -> None:
    facts = built(plans={"tensorrt": {"plugin": {"used": True, "detail": "70 layers"}}})
    assert row_of(PLUGIN, facts).gate == "fail"


def test_the_limit_that_binds_is_the_one_that_takes_longer() -> None:
    peaks = Peaks({"fp32": 3e12, "fp16": 6e12}, bytes=1e11)
    # Float32 takes three products of TF32: 3 * 2e9 / 3e12 seconds, which are 2 ms. 1e8 bytes take 1 ms.
    assert limit_of(Cost(flop=2 * 10**9, bytes=10**8), "fp32", peaks) == ("products", pytest.approx(2))
    assert limit_of(Cost(flop=2 * 10**9, bytes=10**8), "fp16", peaks) == ("memory", pytest.approx(1))
