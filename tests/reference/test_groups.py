"""Turns, flips and scales are a group, which acts on maps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dec_export.errors import DecExportError
from dec_export.reference.groups import ACTIONS, Similarity

SQUARE = [Similarity(turns, mirrored) for turns in range(4) for mirrored in (False, True)]
square = st.sampled_from(SQUARE)
scales = st.floats(0.6, 1.7)
elements = st.builds(Similarity, st.integers(-9, 9), st.booleans(), scales)


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Similarity, b: Similarity) -> bool:
    return (a.turns, a.mirrored) == (b.turns, b.mirrored) and math.isclose(a.scale, b.scale, rel_tol=1e-12)


@given(elements, elements, elements)
def test_the_elements_are_a_group(a: Similarity, b: Similarity, c: Similarity) -> None:
    assert close((a @ b) @ c, a @ (b @ c))
    assert close(a @ Similarity(), a)
    assert close(Similarity() @ a, a)
    assert close(a @ a.inverse, Similarity())
    assert close(a.inverse @ a, Similarity())


def test_the_square_has_eight_symmetries_that_are_not_commutative() -> None:
    assert len({a @ b for a in SQUARE for b in SQUARE}) == len(SQUARE) == 8
    flip, turn = Similarity(mirrored=True), Similarity(1)
    assert flip @ turn != turn @ flip


@given(square, square, st.integers(1, 6), st.integers(0, 99))
def test_symmetries_of_the_square_act_exactly(a: Similarity, b: Similarity, n: int, seed: int) -> None:
    features = maps(seed, 2, 3, n, n)
    assert torch.equal(a.act(b.act(features)), (a @ b).act(features))
    assert torch.equal(a.inverse.act(a.act(features)), features)
    assert torch.equal(Similarity().act(features), features)


def test_an_element_does_what_it_says() -> None:
    picture = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert Similarity(1).act(picture).tolist() == [[[2, 4], [1, 3]]], "counterclockwise"
    assert Similarity(mirrored=True).act(picture).tolist() == [[[2, 1], [4, 3]]], "left to right"
    assert Similarity(2, mirrored=True).act(picture).tolist() == [[[3, 4], [1, 2]]], "top to bottom"
    # First mirrored, then turned.
    assert torch.equal(Similarity(1, mirrored=True).act(picture), Similarity(1).act(picture.flip(-1)))
    ring = torch.zeros(1, 8, 8)
    ring[:, 2:6, 2:6] = 1
    assert Similarity(scale=1.5).act(ring).sum() > 1.9 * ring.sum() > ring.sum() > Similarity(scale=0.7).act(ring).sum()


@given(elements, elements, st.integers(5, 12), st.integers(0, 99))
def test_scales_compose_exactly_on_linear_maps(a: Similarity, b: Similarity, n: int, seed: int) -> None:
    # Bilinear sampling is exact on them, as long as it does not reach for what lies outside.
    slope, constant = maps(seed, 2, 1, 1), maps(seed + 1, 1)
    line = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    features = (slope[0] * line[:, None] + slope[1] * line[None, :] + constant)[None]
    # What the second action needs must come from places that the first has not filled up.
    first = b.covers(n, n)[None].double()
    inside = (a.act(first) > 1 - 1e-9)[0] & a.covers(n, n) & (a @ b).covers(n, n)
    twice, once = a.act(b.act(features)), (a @ b).act(features)
    assert torch.allclose(twice[:, inside], once[:, inside], rtol=0, atol=1e-11)


@given(square, scales, st.integers(3, 9), st.integers(0, 99))
def test_scales_commute_with_the_symmetries(g: Similarity, scale: float, n: int, seed: int) -> None:
    features, s = maps(seed, 2, n, n), Similarity(scale=scale)
    assert torch.allclose(g.act(s.act(features)), s.act(g.act(features)), rtol=0, atol=1e-12)


@given(st.integers(2, 10), st.integers(2, 10), st.integers(0, 99))
def test_a_scale_into_its_own_frame_is_a_resize(old: int, new: int, seed: int) -> None:
    features = maps(seed, 2, 3, old, old)
    expected = F.interpolate(features, size=(new, new), mode="bilinear", align_corners=False)
    found = Similarity(scale=new / old).act(features, (new, new))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(scales, st.integers(4, 14), st.integers(0, 99))
def test_what_is_covered_does_not_depend_on_what_lies_outside(scale: float, n: int, seed: int) -> None:
    around = 14
    whole, g = maps(seed, 1, n + 2 * around, n + 2 * around), Similarity(scale=scale)
    inner = (..., slice(around, -around), slice(around, -around))
    covered = g.covers(n, n)
    assert torch.allclose(g.act(whole[inner])[:, covered], g.act(whole)[inner][:, covered], rtol=0, atol=1e-12)
    if scale < 1 - 1 / n:
        assert not covered.all()
        assert not torch.allclose(g.act(whole[inner])[:, ~covered], g.act(whole)[inner][:, ~covered], atol=1e-3)


def test_a_cell_is_covered_as_a_whole() -> None:
    # The third cell from the centre ends 4.17 cells away in the source, which has 4; what is interpolated ends at 3.97.
    assert Similarity(scale=0.72).covers(8, 8).sum() == 16


def test_symmetries_cover_everything_and_the_tested_scales_the_middle() -> None:
    assert all(g.covers(14, 14).all() == (g.scale >= 1) for g in ACTIONS.values())
    assert ACTIONS["scaled by 0.8"].covers(14, 14).sum() == 100


@pytest.mark.parametrize("turns", [1, 3])
def test_a_map_that_is_not_square_cannot_be_turned_by_90_degrees(turns: int) -> None:
    with pytest.raises(DecExportError, match="A map of 4 x 6 cannot be turned by 90 degrees"):
        Similarity(turns).act(torch.zeros(1, 4, 6))
    assert Similarity(turns + 1, mirrored=True).act(torch.zeros(1, 4, 6)).shape == (1, 4, 6)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_is_a_positive_number(scale: float) -> None:
    with pytest.raises(DecExportError, match="Expected a change of scale by a positive number"):
        Similarity(scale=scale)
