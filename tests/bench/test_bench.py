"""Tests of what the bench measures; no test depends on the speed of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dec_export.bench.graph_cost import graph_cost
from dec_export.bench.memory import peak_memory
from dec_export.bench.plot import plot
from dec_export.bench.report import EngineTiming
from dec_export.bench.run import bench
from dec_export.bench.subjects import BASELINES, names_of, subject
from dec_export.bench.timing import interleave, ratio, summarise
from dec_export.bundle.store import Bundle
from dec_export.errors import DecExportError, EngineError
from tests.conftest import photographs
from tests.helpers.commands import refused, run


def test_subjects_take_turns_and_are_warmed_up() -> None:
    calls: list[str] = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "a", "b", "b"] * 3
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_medians_and_ratios() -> None:
    timing = summarise([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (timing.median, timing.quartile_low, timing.quartile_high) == (3, 2, 4)
    assert (timing.smallest, timing.largest, timing.runs) == (1, 5, 5)
    assert ratio([2, 40, 6], [1, 10, 3]) == 2, "rounds are compared with themselves"
    assert summarise([2.0]).quartile_low == 2


def test_flops_and_bytes_are_counted_from_shapes() -> None:
    """The model convolves (n, 3, 8, 8) with 3x3 kernels to 5 channels, and multiplies the result by (180, 7)."""
    weights = [
        numpy_helper.from_array(np.zeros((5, 3, 3, 3), np.float32), "kernel"),
        numpy_helper.from_array(np.zeros((180, 7), np.float32), "matrix"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"]),
        helper.make_node("Flatten", ["map"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 7])
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [image], [logits], weights), opset_imports=[helper.make_opsetid("", 18)]
    )
    one, four = graph_cost(proto, 1), graph_cost(proto, 4)
    assert one.flops == 2 * (5 * 36 * 27 + 7 * 180)
    assert one.bytes == 4 * (192 + 135 + 180 + 180 + 180 + 180 + 1260 + 7)
    assert four.flops == 4 * one.flops
    assert four.bytes - one.bytes == 3 * 4 * (192 + 4 * 180 + 7)


def test_names_stand_for_engines_and_baselines() -> None:
    assert names_of(["onnxruntime", "onnxruntime"], ["plain", "eager"]) == [
        "onnxruntime",
        "plain-onnxruntime",
        "eager",
    ]
    with pytest.raises(DecExportError, match="Unknown baseline 'quick', expected one of eager"):
        names_of(["onnxruntime"], ["quick"])


def test_a_baseline_may_name_the_file_of_its_weights(small_bundle: Bundle, tmp_path: Path) -> None:
    import torch

    from dec_export.reference.optim import with_optim

    file = tmp_path / "19 ada_vit_dem_classification_surrogate.pth"
    torch.save(with_optim(small_bundle.reference(), seed=5).DEM.state_dict(), file)
    name = f"optim={file}"
    assert names_of(["onnxruntime"], [name]) == ["onnxruntime", name]
    images = photographs(160, 1)
    found = subject(small_bundle, name, 1, tmp_path)(images)
    other = subject(small_bundle, "optim", 1, tmp_path)(images)
    with torch.no_grad():
        expected = with_optim(small_bundle.reference(), seed=5)(torch.from_numpy(images))
    assert torch.equal(found.logits, expected.logits)  # type: ignore[attr-defined]
    assert not torch.equal(other.logits, expected.logits)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["eager=weights.pth", "plain=weights.pth", "optim="])
def test_other_baselines_take_no_file(name: str) -> None:
    with pytest.raises(DecExportError, match=r"cannot be named with a file: name .*, or one of optim=FILE"):
        names_of(["onnxruntime"], [name])


@pytest.mark.parametrize("name", ["quick", "plain", "plain-torch", "plain-quick"])
def test_no_other_name_becomes_a_subject(name: str, small_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        DecExportError, match=r"Unknown baseline|Unknown engine|exists once for each engine|cannot be run on"
    ):
        subject(small_bundle, name, 1, tmp_path)


def test_every_baseline_has_a_line_of_help() -> None:
    assert all(name == baseline.name and baseline.summary for name, baseline in BASELINES.items())


def test_baselines_compute_what_they_stand_for(small_bundle: Bundle, tmp_path: Path) -> None:
    images = photographs(160, 2)
    reference = small_bundle.reference()
    plain = subject(small_bundle, "plain-onnxruntime", 1, tmp_path)(images)
    import torch

    with torch.inference_mode():
        expected = reference.backbone(torch.from_numpy(images)).numpy()
    assert np.abs(plain["logits"] - expected).max() <= 1e-4 * np.abs(expected).max()  # type: ignore[index]
    for name in ("optim", "train", "optim-train"):
        subject(small_bundle, name, 1, tmp_path)(images)


def test_a_report_has_everything(small_bundle: Bundle, tmp_path: Path) -> None:
    report = bench(
        small_bundle, ["onnxruntime"], baselines=["plain"], batches=(1, 2), rounds=2, threads=1, memory=False
    )
    json.dumps(report.model_dump(mode="json"), allow_nan=False)
    assert report.threads == 1
    assert report.peaks.flops > 1e9
    first, second = report.batches
    assert second.graph.flops == pytest.approx(2 * first.graph.flops)
    row, plain = first.subjects["onnxruntime"], first.subjects["plain-onnxruntime"]
    assert isinstance(row, EngineTiming)
    assert not isinstance(plain, EngineTiming)
    assert row.overhead == pytest.approx(1 / row.ratio_to["plain-onnxruntime"] - 1, rel=0.5)
    for suffix in ("png", "svg"):
        plot(report, tmp_path / f"picture.{suffix}")
        assert (tmp_path / f"picture.{suffix}").stat().st_size > 1000


def test_memory_is_that_of_a_fresh_process(small_bundle: Bundle, tmp_path: Path) -> None:
    used = peak_memory(small_bundle, "onnxruntime", 1, 1, tmp_path)
    assert used is not None
    assert small_bundle.onnx_path.stat().st_size < used.before < used.peak
    assert used.peak < 600e6, "without PyTorch"
    with pytest.raises(EngineError, match="Measuring the memory of 'plain-onnxruntime' ended with 1"):
        peak_memory(small_bundle, "plain-onnxruntime", 1, 1, tmp_path)


def test_the_command_keeps_the_contract_and_refuses_nonsense(small_bundle: Bundle, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    done = run("bench", small_bundle.path, "--baseline", "none", "--batch", 1, "--rounds", 1, "--no-memory", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["batches"][0]["subjects"].keys() == {"onnxruntime"}
    done = run("bench", small_bundle.path, "--baseline", "plain", "--batch", 2, "--rounds", 1, "--plot", picture)
    assert "DEC costs" in done.stdout
    assert "MB (before:" in done.stdout
    assert picture.read_text().startswith("<?xml")
    assert "Unknown baseline" in refused("bench", small_bundle.path, "--baseline", "quick")
    assert "Unknown engine" in refused("bench", small_bundle.path, "--engine", "onnxrumtime")
    assert "--batch expects" in refused("bench", small_bundle.path, "--batch", "many")
    assert "Batches must be" in refused("bench", small_bundle.path, "--batch", "0")
    assert "--plot expects" in refused("bench", small_bundle.path, "--plot", tmp_path / "a.txt")
    assert onnx.load(small_bundle.onnx_path).graph.node, "the bundle is only read"
