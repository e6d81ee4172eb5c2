"""Engines can be built to show their inner tensors."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from dec_export.bundle.store import Bundle
from dec_export.engines.tensorrt.traced import build_traced_plan
from dec_export.errors import EngineError
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.onnx_export.checks import check_dec_nodes
from dec_export.onnx_export.operators import operators_in
from dec_export.onnx_export.tracing import export, inner_names, with_outputs
from dec_export.pipeline.options import ProofOptions
from dec_export.pipeline.prove import prove
from tests.conftest import needs_rtx, without_gpu


@needs_rtx
def test_a_traced_engine_returns_every_inner_tensor(small_bundle: Bundle, tmp_path: Path) -> None:
    entry = build_traced_plan(small_bundle, "tensorrt-rtx", tmp_path)
    assert entry.options == small_bundle.manifest.plans["tensorrt-rtx"].options
    bindings = json.loads((tmp_path / entry.layers_file).read_text())["bindings"]
    names = inner_names(onnx.load(small_bundle.onnx_path))
    assert {binding["name"] for binding in bindings} == {"image", "logits", *names}


@needs_rtx
@without_gpu
def test_a_trace_of_an_engine_that_cannot_run_says_so_at_once(small_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="needs a GPU"):
        prove(small_bundle, "tensorrt-rtx", proof=ProofOptions(trace=True))


def test_a_traced_plugin_form_keeps_its_operators(small_bundle: Bundle) -> None:
    proto = export(lower(small_bundle.reference()), Forms(Solver.PLUGIN))
    traced = with_outputs(proto, inner_names(proto))
    onnx.checker.check_model(traced)
    check_dec_nodes(traced)
    assert [operator.name for operator in operators_in(traced)] == [operator.name for operator in operators_in(proto)]
