"""A faulty plan is refused with an error before TensorRT loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dec_export.engines.tensorrt import plan as plans
from dec_export.engines.tensorrt.flavours import TENSORRT, TENSORRT_RTX
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.engines.tensorrt.plan import check_plan, read_version, targets
from dec_export.errors import EngineError
from dec_export.gpu import Gpu
from tests.helpers.plans import L40, entry, header

T4 = Gpu("Tesla T4", (7, 5), 16 << 30, "13.0")
H100 = Gpu("NVIDIA H100", (9, 0), 80 << 30, "13.0")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.rtx.plan"
    path.write_bytes(header(TENSORRT_RTX))
    return path


def test_a_plan_for_this_machine_is_accepted(plan: Path, installed: dict[str, str]) -> None:
    check_plan(plan, TENSORRT_RTX, entry(), L40)


def test_a_foreign_version_is_named(plan: Path, installed: dict[str, str]) -> None:
    installed["tensorrt-rtx"] = "1.8.0.9"
    with pytest.raises(
        EngineError,
        match=r"built with TensorRT for RTX 1\.7\.1\.116 and runs only with this version, but 1\.8\.0\.9 is installed",
    ):
        check_plan(plan, TENSORRT_RTX, entry(), L40)


def test_a_manifest_that_lies_about_the_version_is_found_out(plan: Path, installed: dict[str, str]) -> None:
    with pytest.raises(EngineError, match=r"made by TensorRT for RTX 1\.7\.1\.116, expected 1\.6"):
        check_plan(plan, TENSORRT_RTX, entry(version="1.6.0.1"), L40)


@pytest.mark.parametrize(
    ("gpu", "changes", "words"),
    [
        (T4, {}, "8.0 and later, but this machine's Tesla T4 has 7.5"),
        (
            H100,
            {"compute_capabilities": ("8.6", "8.9"), "and_later": False},
            "8.6, 8.9, but this machine's NVIDIA H100",
        ),
    ],
)
def test_a_foreign_gpu_is_named(
    gpu: Gpu, changes: dict[str, object], words: str, plan: Path, installed: dict[str, str]
) -> None:
    with pytest.raises(EngineError, match=words):
        check_plan(plan, TENSORRT_RTX, entry(**changes), gpu)


def test_a_tensorrt_plan_is_for_one_kind_of_gpu_unless_it_was_built_for_more(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(header(TENSORRT))
    here = {"compute_capabilities": ("8.9",), "and_later": False}
    check_plan(path, TENSORRT, entry(TENSORRT, gpu="NVIDIA L40", **here), L40)
    with pytest.raises(EngineError, match="built on NVIDIA L4 and runs only on this GPU model"):
        check_plan(path, TENSORRT, entry(TENSORRT, gpu="NVIDIA L4", **here), L40)
    wide = BuildOptions(hardware_compatibility="same-compute-capability")
    check_plan(path, TENSORRT, entry(TENSORRT, gpu="NVIDIA L4", options=wide, **here), L40)


def test_a_plan_that_carries_code_needs_leave(tmp_path: Path, installed: dict[str, str]) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(header(TENSORRT))
    carrying = entry(
        TENSORRT,
        gpu="NVIDIA L40",
        compute_capabilities=("8.9",),
        and_later=False,
        options=BuildOptions(version_compatible=True),
    )
    with pytest.raises(EngineError, match="--allow-host-code if you trust"):
        check_plan(path, TENSORRT, carrying, L40)
    check_plan(path, TENSORRT, carrying, L40, allow_host_code=True)


def test_no_gpu_is_said_last(plan: Path, installed: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="needs a GPU"):
        check_plan(plan, TENSORRT_RTX, entry(), None)
    installed["tensorrt-rtx"] = "1.8.0.9"
    with pytest.raises(EngineError, match="is installed"):
        check_plan(plan, TENSORRT_RTX, entry(), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(TENSORRT), "is a plan of TensorRT:"),
        (b"", "is something else"),
        (b"vtrt", "is something else"),
        (b"\x08\x0a\x12\x07pytorch" + bytes(60), "is something else"),
        (header(TENSORRT_RTX)[:40], "cut short"),
    ],
    ids=["the other flavour", "empty", "only a tag", "an ONNX model", "truncated"],
)
def test_a_file_that_is_no_such_plan_is_named(content: bytes, words: str, plan: Path) -> None:
    plan.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        read_version(plan, TENSORRT_RTX)


numbers = st.tuples(st.integers(8, 12), st.integers(0, 20), st.integers(0, 9), st.integers(0, 200))


@given(built=numbers, here=numbers)
def test_only_a_version_compatible_plan_runs_elsewhere(built: tuple[int, ...], here: tuple[int, ...]) -> None:
    texts = [".".join(map(str, version)) for version in (built, here)]
    assert plans._versions_fit(*texts, False) == (built == here)
    assert plans._versions_fit(*texts, True) == (built <= here and here[0] - built[0] <= 1)


def test_what_a_plan_is_for_follows_from_how_it_is_built() -> None:
    assert targets(TENSORRT_RTX, BuildOptions(), None) == ([(8, 0)], True)
    assert targets(TENSORRT_RTX, BuildOptions(compute_capabilities=("8.9", "12.0")), H100) == (
        [(8, 9), (12, 0)],
        False,
    )
    assert targets(TENSORRT, BuildOptions(), H100) == ([(9, 0)], False)
    assert targets(TENSORRT, BuildOptions(hardware_compatibility="ampere-plus"), H100) == ([(8, 0)], True)
    with pytest.raises(EngineError, match="builds for this machine's GPU"):
        targets(TENSORRT, BuildOptions(), None)
