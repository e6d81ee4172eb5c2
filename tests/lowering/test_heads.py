"""A head with folded batch norms computes the function of the original head, up to the last digits of float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dec_export.lowering.heads import fold_batch_norms
from dec_export.lowering.model import lower
from dec_export.recipe.model import HeadRecipe
from dec_export.reference.heads import create_head
from tests.helpers.models import DPT, LINEAR, image, segmenter


def trained_head(classes: int = 3) -> nn.Module:
    """Return a head with statistics as after a training."""
    torch.manual_seed(0)
    head = create_head(HeadRecipe(kind="dpt", taps=(0, 1, 2), width=6), [4, 5, 6], classes).double()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return head.eval()


def features() -> list[Tensor]:
    return [torch.randn(2, c, n, n, dtype=torch.float64) for c, n in ((4, 8), (5, 4), (6, 2))]


def test_folding_changes_no_value_and_leaves_no_norm() -> None:
    head = trained_head()
    folded = copy.deepcopy(head)
    fold_batch_norms(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    maps = features()
    with torch.inference_mode():
        torch.testing.assert_close(folded(maps, (16, 16)), head(maps, (16, 16)), rtol=1e-12, atol=1e-12)


def test_weights_are_combined_in_float64_and_rounded_once() -> None:
    exact, folded = trained_head(), trained_head().float()
    fold_batch_norms(folded)
    fold_batch_norms(exact)
    for name, value in exact.state_dict().items():
        if name.startswith("fusion_1.1.0"):
            rounded = folded.state_dict()[name]
            assert (rounded - value).abs().max() <= 2 * 2**-24 * value.abs().max()


@pytest.mark.parametrize("head", [LINEAR, DPT], ids=["linear", "dpt"])
def test_a_lowered_segmentation_model_is_the_reference(head: HeadRecipe) -> None:
    reference = segmenter(head)
    lowered = lower(reference)
    with torch.inference_mode():
        expected, found = reference(image()), lowered(image())
    assert (found.logits - expected.logits).norm() <= 1e-8 * expected.logits.norm()
