"""Tests check shape annotations, and a run of dec-export does not."""

from __future__ import annotations

import subprocess
import sys

import jaxtyping
import pytest
import torch

from dec_export.lowering import matrices, mixing
from dec_export.lowering import warp as lowered
from dec_export.reference import anderson, finite, warp
from dec_export.reference.warp import Phi
from tests.shapes import SHAPE_CHECKED


def test_a_call_with_a_wrong_shape_raises() -> None:
    warp.positive_steps(torch.ones(2, 4, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="phi_axis"):
        warp.positive_steps(torch.ones(2, 4, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match="batch"):
        finite.nan_unless(torch.ones(3, dtype=torch.bool), torch.ones(2, 5))
    with pytest.raises(jaxtyping.TypeCheckError, match="differences"):
        anderson.mixing_weights(torch.ones(2, 3), 1e-4)


def test_a_result_of_a_wrong_shape_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    phi = Phi.ones(2, 4, torch.ones(1))
    assert warp.dense_grid(phi, (6, 5)).shape == (2, 2, 6, 5)
    monkeypatch.setattr(warp, "coarse_grid", lambda _: torch.ones(2, 3, 4, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        warp.dense_grid(phi, (6, 5))


def test_a_matrix_of_another_dtype_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices.torch, "eye", lambda *size, **_: torch.ones(*size, dtype=torch.float32))
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        matrices.adaptive_pool_matrix(6, 4)


def test_both_warps_and_both_mixings_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        mixing.mixing_weights(torch.ones(2, 3), 1e-4)
    with pytest.raises(jaxtyping.TypeCheckError):
        lowered.sample(torch.ones(2, 3, 8, 8), torch.ones(2, 2, 8, 8))


def test_a_run_of_dec_export_checks_nothing() -> None:
    """Outside of tests, no check is installed, and beartype is not imported."""
    imports = "\n".join(f"import {name}" for name in SHAPE_CHECKED)
    wrapped = "hasattr(dec_export.reference.warp.warp, '__wrapped__')"
    code = f"import sys\n{imports}\nprint('beartype' in sys.modules, {wrapped})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
