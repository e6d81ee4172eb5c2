"""Every shipped recipe, whole, on real photographs: the bar of the product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dec_export.bundle import Bundle
from dec_export.images import packaged_photographs
from dec_export.pipeline import build
from dec_export.recipe import shipped_recipes
from tests.conftest import needs_rtx

# Large models have no arithmetic of their own; a proof of theirs takes minutes, most of it in the float64 reference.
SAMPLES = {"vit_b": 4, "deit_b": 4, "swin_b": 4}


def built(name: str, tmp_path: Path, **options: Any) -> Bundle:
    return build(name, out=tmp_path / name, threads=torch.get_num_threads(), **options)


def assert_engine(bundle: Bundle, dtypes: set[str]) -> None:
    """The engine of TensorRT for RTX is there, and each of the graph's matrix products runs in its own format."""
    entry = bundle.manifest.plans["tensorrt-rtx"]
    assert entry.options.batch == (1, 8, 32)
    assert set(entry.precision) == dtypes
    assert all(count.found == count.graph > 0 for count in entry.precision.values())
    assert entry.peak_memory_bytes is None or entry.peak_memory_bytes < 8e9


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_within_the_noise_floor(name: str, tmp_path: Path) -> None:
    samples = SAMPLES.get(name, 8)
    bundle = built(name, tmp_path, samples=samples)
    assert bundle.parity is not None
    report = bundle.parity["engines"]["onnxruntime"]
    assert report["gate"] == "pass", report["failures"]
    assert report["samples"] == samples
    assert "photographs" in report["images"]["source"]
    ratios = {tensor: entry["ratio"] for tensor, entry in {**report["outputs"], **report["phi"]}.items()}
    assert max(ratios.values()) <= 1, ratios
    invariance = report["invariance"]
    assert invariance["engine"] == pytest.approx(invariance["reference"], rel=0.01)
    # Random weights leave near ties between classes; float32 itself may break one differently than float64.
    assert report["top1_agreement"] >= report["top1_agreement_reference_fp32"]
    if "tensorrt-rtx" in bundle.manifest.engines:
        assert_engine(bundle, {"float32"})


@pytest.mark.slow
def test_float16_keeps_the_top_class_and_the_solver(tmp_path: Path) -> None:
    photographs = len(packaged_photographs())
    bundle = built("deit_s", tmp_path, samples=photographs, precision="fp16", engines=["onnxruntime"])
    assert bundle.parity is not None
    report = bundle.parity["engines"]["onnxruntime"]
    assert report["gate"] == "pass", report["failures"]
    assert report["samples"] == photographs
    assert report["top1_agreement"] == 1
    for name, entry in report["phi"].items():
        assert entry["rel_l2_reference"] == entry["rel_l2_reference_fp32"], "the solver stays in float32"
        assert entry["ratio"] <= 1, name


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_s", "swin_t", "beit_b"])
def test_float16_engines_are_built_without_a_gpu(name: str, tmp_path: Path) -> None:
    bundle = built(name, tmp_path, precision="fp16", engines=["tensorrt-rtx"])
    assert_engine(bundle, {"float16", "float32"})
