"""The script that measures the speed of evaluations runs, and its numbers fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import evaluation_speed
from dec_export.bundle.store import Bundle


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    write = evaluation_speed.write_digits
    monkeypatch.setattr(evaluation_speed, "write_digits", lambda count, folder: write(count // 25, folder))
    monkeypatch.setattr(evaluation_speed, "ROUNDS", 1)


def test_throughput_is_the_ratio_of_its_rates(small_bundle: Bundle, few_images: None, tmp_path: Path) -> None:
    found = evaluation_speed.throughput(small_bundle.path, tmp_path)
    assert set(found) == {"engine", "engine and reference"}
    for rates in found.values():
        [direct], [evaluated] = rates["direct_images_per_s"], rates["evaluate_images_per_s"]
        assert rates["ratio"] == pytest.approx(evaluated / direct, rel=0.05)
        # An evaluation runs the engines too, so it cannot be much faster.
        assert rates["ratio"] < 5


def test_memory_is_recorded_while_images_are_evaluated(small_bundle: Bundle, tmp_path: Path) -> None:
    data = evaluation_speed.write_digits(64, tmp_path / "data")
    assert len(list(data.glob("[0-9]/*.png"))) == 64
    assert {Image.open(path).size for path in data.glob("0/*.png")} == {(64, 64)}

    class Results(list):  # stands for the queue to the other process
        put = list.append

    results = Results()
    evaluation_speed._record(small_bundle.path, data, tmp_path, 64, results)
    [found] = results
    assert list(found["resident_mib"]) == ["50 %", "100 %"]
    assert 0 < max(found["resident_mib"].values()) <= found["highest_mib"]
