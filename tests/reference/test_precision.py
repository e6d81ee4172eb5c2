"""Only the chosen parts of a model compute in 16 bits, and their errors are those of the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dec_export.errors import DecExportError
from dec_export.formats import Format
from dec_export.parity.metrics import rel_l2
from dec_export.reference.model import DecModel, DecOutput, create_reference, in_precision
from dec_export.reference.precision import check_precision
from tests.conftest import photographs, randomised
from tests.helpers.models import MODELS, recipe_for


def run(model: DecModel) -> DecOutput:
    image = torch.from_numpy(photographs(model.recipe.backbone.image_size, 4))
    with torch.inference_mode():
        output: DecOutput = model(image.to(model.input_dtype))
    return output


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", [Format.FP16, Format.BF16], ids=str)
def test_a_16_bit_backbone_leaves_the_solver_alone(kind: str, precision: Format) -> None:
    """Phi is the same to the bit, logits come in float32, and they differ as the format's rounding says.

    A network of a few layers turns a unit roundoff u into a relative error of some u; a hundred would mean that
    something else was rounded, and less than a hundredth that nothing was.
    """
    model = randomised(create_reference(recipe_for(*MODELS[kind])))
    wide, narrow = run(model), run(in_precision(model, precision))
    for phi, expected in zip(narrow.phis, wide.phis, strict=True):
        assert torch.equal(phi.x, expected.x)
        assert torch.equal(phi.y, expected.y)
    assert narrow.logits.dtype == torch.float32
    distance = rel_l2(narrow.logits.numpy(), wide.logits.double().numpy())
    assert 0.01 * precision.unit_roundoff < distance < 100 * precision.unit_roundoff


def test_the_original_stays_in_float32(small_model: DecModel) -> None:
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    in_precision(small_model, Format.BF16, Format.FP16)
    assert all(torch.equal(value, before[name]) for name, value in small_model.state_dict().items())
    assert not any(m._forward_hooks for m in small_model.modules() if isinstance(m, nn.Conv2d))


def test_a_16_bit_solver_scores_in_16_bits_and_warps_in_float32(small_model: DecModel) -> None:
    """Its scores have few digits; its phi, a mixture of them, and its images have all of float32's."""
    wide, narrow = run(small_model), run(in_precision(small_model, Format.FP32, Format.FP16))
    assert narrow.phis[0].x.dtype == torch.float32
    distance = rel_l2(narrow.phis[0].x.numpy(), wide.phis[0].x.double().numpy())
    assert distance > Format.FP16.unit_roundoff / 10
    assert np.isfinite(narrow.logits.numpy()).all()


@pytest.mark.parametrize(("precision", "solver"), [("fp8", "fp32"), ("fp32", "bf16"), ("fp32", "int8"), ("", "fp32")])
def test_other_formats_are_refused(precision: str, solver: str) -> None:
    with pytest.raises(DecExportError, match="expected one of"):
        check_precision(precision, solver)


def test_a_format_that_a_part_cannot_have_is_refused_by_the_model_too(small_model: DecModel) -> None:
    with pytest.raises(DecExportError, match="Unknown precision 'int8', expected one of fp32, fp16, bf16"):
        in_precision(small_model, Format.INT8)
    with pytest.raises(DecExportError, match="Unknown solver precision 'bf16', expected one of fp32, fp16:"):
        in_precision(small_model, Format.FP32, Format.BF16)


def test_words_become_formats() -> None:
    assert check_precision("bf16", "fp16") == (Format.BF16, Format.FP16)
    assert all(isinstance(found, Format) for found in check_precision("bf16", "fp16"))
