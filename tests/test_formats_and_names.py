"""Formats agree with those of the libraries, and parsing a tensor's name keeps all of its parts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dec_export import names
from dec_export.formats import BACKBONE_FORMATS, SOLVER_FORMATS, Format, tolerance_of
from dec_export.names import Kind, TensorName

FLOATS = (Format.FP64, Format.FP32, Format.FP16, Format.BF16, Format.FP8)


@pytest.mark.parametrize("format_", Format)
def test_a_format_is_the_same_in_every_library(format_: Format) -> None:
    assert Format(str(format_)) is format_
    assert Format.of_label(format_.label) is format_
    assert Format.of_onnx(format_.onnx) is format_
    assert Format.of_torch(format_.torch) is format_
    assert torch.empty(1, dtype=format_.torch).element_size() == format_.size
    assert onnx.helper.tensor_dtype_to_np_dtype(format_.onnx).name == format_.label
    assert Format.in_text(format_.label.upper()) is format_
    assert Format.in_text(f"Row major linear {format_.value.upper()} format") is format_
    if format_ is Format.FP64:
        with pytest.raises(KeyError):
            _ = format_.tensorrt
    else:
        assert Format.of_tensorrt(format_.tensorrt) is format_
        assert Format.in_text(f"DataType.{format_.tensorrt}") is format_


@pytest.mark.parametrize("format_", FLOATS)
def test_unit_roundoff_is_half_the_distance_to_the_next_number(format_: Format) -> None:
    assert format_.unit_roundoff == float(torch.finfo(format_.torch).eps) / 2
    assert format_.unit_roundoff == float(ml_dtypes.finfo(np.dtype(format_.label)).eps) / 2


def test_indices_and_text_have_no_format() -> None:
    assert Format.of_onnx(onnx.TensorProto.INT64) is None
    assert Format.of_onnx(onnx.TensorProto.STRING) is None
    assert Format.of_tensorrt("INT64") is Format.in_text("Int64") is Format.in_text("Bool") is None
    with pytest.raises(KeyError):
        Format.of_label("float31")


def test_the_solver_stores_float32_and_float16() -> None:
    assert SOLVER_FORMATS == (Format.FP32, Format.FP16)
    assert [format_.triton_pointer for format_ in SOLVER_FORMATS] == ["*fp32", "*fp16"]


def test_a_backbone_is_computed_in_float32_float16_or_bfloat16() -> None:
    assert BACKBONE_FORMATS == (Format.FP32, Format.FP16, Format.BF16)


def test_the_coarsest_part_decides_the_tolerance() -> None:
    assert tolerance_of([Format.FP32]) == 0.01
    assert tolerance_of([Format.FP16, Format.FP32]) == 0.05


PLACES, ITERATES = st.integers(0, 9999), st.integers(0, 9999)
NAMES = st.one_of(
    st.just(TensorName(Kind.LOGITS)),
    st.builds(TensorName, st.just(Kind.PHI), PLACES, st.sampled_from(["x", "y"])),
    st.builds(TensorName, st.sampled_from([Kind.ITERATE, Kind.IMAGE]), PLACES, st.none(), ITERATES),
    st.builds(TensorName, st.sampled_from([Kind.FEATURES, Kind.FEATURE_MAP]), PLACES),
)


@given(NAMES)
def test_a_name_survives_being_parsed(name: TensorName) -> None:
    assert TensorName.parse(str(name)) == name
    assert name.is_output or name.is_inner
    assert names.original_name(f"{name}__3") == (str(name) if name.k is not None else f"{name}__3")


@given(st.text(max_size=30))
def test_whatever_is_parsed_is_written_the_same(text: str) -> None:
    found = TensorName.parse(text)
    assert found is None or int(found.place or 0) >= 0


@pytest.mark.parametrize("text", ["phi_z_0", "phi_x_", "solve_0", "logits_0", "feature_map_99999", "features_-1", ""])
def test_other_tensors_are_of_no_interest(text: str) -> None:
    assert TensorName.parse(text) is None
    assert not names.is_output(text)
    with pytest.raises(KeyError):
        names.describe(text)


@given(st.lists(NAMES, unique=True, max_size=12))
def test_the_order_is_total_and_stable(found: list[TensorName]) -> None:
    texts = [str(name) for name in found]
    ordered = names.computation_order(texts)
    assert sorted(ordered) == sorted(texts)
    assert names.computation_order(reversed(ordered)) == ordered


def test_solvers_come_before_the_backbone_and_the_head_last() -> None:
    texts = ["logits", "features_0", "phi_y_0", "phi_x_0", "solve_0_image_1", "solve_0_iterate_1", "feature_map_0"]
    texts += ["solve_1_iterate_2"]
    assert names.computation_order(texts) == [
        *("solve_0_iterate_1", "solve_0_image_1", "phi_x_0", "phi_y_0", "solve_1_iterate_2"),
        *("features_0", "feature_map_0", "logits"),
    ]
