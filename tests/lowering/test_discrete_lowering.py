"""The lowered classical canonicalizer equals the reference, and its form is that of its reasons."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dec_export.lowering.discrete import LoweredDiscrete
from dec_export.lowering.model import lower
from dec_export.recipe.canonicalizers import DiscreteCanonicalizerRecipe
from dec_export.reference.discrete import DiscreteCanonicalizer
from dec_export.reference.model import create_reference
from tests.conftest import photographs, randomised
from tests.helpers.discrete import discrete_recipe


@given(
    st.lists(st.floats(0.25, 2), min_size=2, max_size=3),
    st.integers(1, 3),
    st.sampled_from([((3, 1), (3,)), ((3, 4, 1), (5, 3)), ((3, 2, 2, 1), (3, 1, 3))]),
    st.tuples(st.integers(16, 40), st.integers(16, 40)),
)
@settings(max_examples=20, deadline=None)
def test_scores_and_choices_are_those_of_the_reference(
    values: list[float],
    limit: int,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    size: tuple[int, int],
) -> None:
    recipe = DiscreteCanonicalizerRecipe(
        kind="discrete", values=tuple(values), limit=limit, channels=sizes[0], kernel_sizes=sizes[1]
    )
    torch.manual_seed(0)
    reference = DiscreteCanonicalizer(recipe).double()
    lowered = LoweredDiscrete(reference, size).double()
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = reference.scores(image)
        torch.testing.assert_close(lowered.scores(image), expected, rtol=1e-10, atol=1e-12)
        (found,), (truth,) = lowered(image), reference(image)
    margin = expected.sort(dim=1, descending=True).values
    decided = torch.ones(2, dtype=torch.bool) if limit == 1 else margin[:, 0] - margin[:, 1] > 1e-9
    assert torch.equal(found.x[decided], truth.x[decided])
    assert torch.equal(found.y[decided], truth.y[decided])


@pytest.mark.parametrize("segmentation", [False, True])
def test_the_lowered_model_is_the_reference(segmentation: bool) -> None:
    model = randomised(create_reference(discrete_recipe(limit=2, segmentation=segmentation))).double()
    lowered = lower(model)
    image = torch.from_numpy(photographs(160, 2)).double()
    with torch.inference_mode():
        found, expected = lowered(image), model(image)
    assert torch.equal(found.phis[0].x, expected.phis[0].x)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)


def test_maps_of_coordinates_are_kept_for_axes_and_not_for_pairs() -> None:
    lowered = lower(create_reference(discrete_recipe(limit=4)))
    canonicalizer = cast("LoweredDiscrete", lowered.canonicalizer)
    for name in ("columns", "rows"):
        assert getattr(canonicalizer, name).shape == (4, 160, 160, 1)
