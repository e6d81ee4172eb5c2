"""Timings are kept for the configuration that they were measured on, and their file is always whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import dec_export
from dec_export.children import python_command
from dec_export.engines.tensorrt import timing_cache
from dec_export.engines.tensorrt.flavours import TENSORRT
from dec_export.gpu import Gpu
from tests.helpers.timings import build, union

ROOT = Path(dec_export.__file__).parent.parent
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
    assert sorted(path.name for path in kept.parent.iterdir()) in (["a.cache"], [".a.cache.lock", "a.cache"])


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


def test_two_builds_at_once_lose_no_timings(tmp_path: Path) -> None:
    kept, one, other = tmp_path / "a.cache", tmp_path / "one", tmp_path / "other"
    kept.write_bytes(b"before\n")
    for working in (one, other):
        assert timing_cache.borrow(kept, working)
    build(kept, one, b"one")
    build(kept, other, b"other")
    assert timing_cache.keep(one, kept, union)
    assert kept.read_bytes() == b"before\none\n"
    assert timing_cache.keep(other, kept, union)
    assert kept.read_bytes() == b"before\none\nother\n"


def test_the_first_caches_of_two_builds_are_merged(tmp_path: Path) -> None:
    kept = tmp_path / "a.cache"
    for name in ("one", "other"):
        assert timing_cache.borrow(tmp_path / "none", tmp_path / name)
        build(kept, tmp_path / name, name.encode())
    for name in ("one", "other"):
        assert timing_cache.keep(tmp_path / name, kept, union)
    assert kept.read_bytes() == b"one\nother\n"


def test_nothing_is_merged_when_nobody_else_built(tmp_path: Path) -> None:
    def never(_first: bytes, _second: bytes) -> bytes:
        raise AssertionError("TensorRT was started for nothing")

    kept, working = tmp_path / "a.cache", tmp_path / "working"
    for timing in (b"first", b"second"):
        assert timing_cache.borrow(kept, working)
        build(kept, working, timing)
        assert timing_cache.keep(working, kept, never)
    assert kept.read_bytes() == b"first\nsecond\n"


def test_a_merge_that_fails_keeps_the_later_timings_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_first: bytes, _second: bytes) -> bytes:
        raise OSError("the caches are of two GPUs")

    kept, working = tmp_path / "a.cache", tmp_path / "working"
    kept.write_bytes(b"other")
    working.write_bytes(b"mine")
    assert timing_cache.keep(working, kept, fail)
    assert kept.read_bytes() == b"mine"
    assert "are lost: the caches are of two GPUs" in caplog.text


_BUILDER = """
import sys
from pathlib import Path
import dec_export
from dec_export.children import python_command
from dec_export.engines.tensorrt import timing_cache
from tests.helpers.timings import build, union

kept, working, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for i in range(20):
    assert timing_cache.borrow(kept, working)
    build(kept, working, f"{name}-{i:02}".encode())
    assert timing_cache.keep(working, kept, union)
"""


def test_two_processes_at_once_lose_no_timings(tmp_path: Path) -> None:
    """Each process stores twenty timings, one by one, in one shared file."""
    kept = tmp_path / "a.cache"
    builders = [
        subprocess.Popen([sys.executable, "-c", _BUILDER, str(kept), str(tmp_path / name), name], cwd=ROOT)
        for name in ("one", "other")
    ]
    assert [builder.wait(timeout=120) for builder in builders] == [0, 0]
    assert kept.read_text().split() == sorted(f"{name}-{i:02}" for name in ("one", "other") for i in range(20))


class Cache:
    """A stand-in for TensorRT's timing cache with lines key=time, which keeps its own entry if both caches have one."""

    def __init__(self, content: bytes) -> None:
        self.entries = dict(line.split(b"=") for line in content.splitlines())

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.entries = {**other.entries, **self.entries}
        return b"gpu" not in other.entries or other.entries[b"gpu"] == self.entries[b"gpu"]

    def serialize(self) -> memoryview:
        return memoryview(b"".join(b"%b=%b\n" % entry for entry in sorted(self.entries.items())))


def standin() -> SimpleNamespace:
    """Return a stand-in for the part of TensorRT that `combine` uses."""
    config = SimpleNamespace(create_timing_cache=lambda content: Cache(content) if b"=" in content else None)
    builder = SimpleNamespace(create_builder_config=lambda: config)
    return SimpleNamespace(Logger=Mock(ERROR=1), Builder=lambda _: builder)


def test_tensorrt_merges_two_caches() -> None:
    merged = timing_cache.combine(standin(), b"a=1\nb=2\n", b"b=3\nc=4\n")
    assert merged == b"a=1\nb=3\nc=4\n"
    for others in (b"damaged", b"gpu=h200\n"):
        with pytest.raises(OSError, match="timings of one GPU"):
            timing_cache.combine(standin(), others, b"gpu=h100\n")


def test_without_tensorrt_two_caches_cannot_be_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    command = python_command("import sys; sys.modules['tensorrt'] = None\n" + timing_cache._MERGER[-1])
    monkeypatch.setattr(timing_cache, "_MERGER", command)
    with pytest.raises(OSError, match="tensorrt"):
        timing_cache.merge_with_tensorrt(b"one", b"other")
