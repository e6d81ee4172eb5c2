"""Timings are kept for what they were measured on, and never half-written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dec_export.engines.tensorrt import timing_cache
from dec_export.engines.tensorrt.flavours import TENSORRT
from dec_export.gpu import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, "13.0")


def test_the_name_tells_gpu_version_and_cuda() -> None:
    name = timing_cache.file_name(TENSORRT, "10.13.2.6", "13", H100)
    assert name == "tensorrt-10.13.2.6-cuda13-nvidia-h100-80gb-hbm3-sm9.0.cache"
    others = {
        timing_cache.file_name(TENSORRT, "10.13.3.9", "13", H100),
        timing_cache.file_name(TENSORRT, "10.13.2.6", "12", H100),
        timing_cache.file_name(TENSORRT, "10.13.2.6", "13", replace(H100, name="NVIDIA H200")),
        timing_cache.file_name(TENSORRT, "10.13.2.6", "13", replace(H100, compute_capability=(10, 0))),
    }
    assert len(others | {name}) == 5


def test_a_cache_survives_a_build_that_does_not_finish(tmp_path: Path) -> None:
    kept, working = tmp_path / "kept" / "a.cache", tmp_path / "working"
    assert timing_cache.borrow(kept, working)
    assert not working.exists()
    working.write_bytes(b"first")
    assert timing_cache.keep(working, kept)
    assert kept.read_bytes() == b"first"

    timing_cache.borrow(kept, working)
    working.write_bytes(working.read_bytes() + b" and half")
    assert kept.read_bytes() == b"first"
    timing_cache.keep(working, kept)
    assert kept.read_bytes() == b"first and half"
    assert [path.name for path in kept.parent.iterdir()] == ["a.cache"]


def test_a_build_that_measured_nothing_keeps_nothing(tmp_path: Path) -> None:
    assert not timing_cache.keep(tmp_path / "none", tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_time_and_no_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "working").write_bytes(b"timings")
    kept = tmp_path / "file" / "a.cache"
    assert not timing_cache.borrow(kept, tmp_path / "working")
    assert not timing_cache.keep(tmp_path / "working", kept)


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timing_cache.default_folder() == tmp_path / "dec-export" / "timing"
