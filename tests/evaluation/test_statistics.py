"""Intervals of paired differences hold the truth as often as they say, and limits are judged by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from dec_export.errors import DataError
from dec_export.evaluation.conditions import Clean, LocalScaling
from dec_export.evaluation.gate import Limit, Verdict, conditions_of, judge, overall, parse_limits
from dec_export.evaluation.statistics import FEWEST_IMAGES, Interval, images_needed, paired_difference
from dec_export.tasks import task_named
from dec_export.tasks.scores import Metric, mean_of

TOP1 = Metric("top1", "top-1 accuracy", mean_of("top1"), column="top1")
NLL = Metric("nll", "negative log-likelihood", mean_of("nll"), False, False, "nll")
INVE = Metric("inve", "InvE", mean_of("inve"), False, False, "inve")


def right(*shares: float, count: int, seed: int) -> list[dict[str, NDArray[np.float64]]]:
    """Return columns of models that are right with these probabilities, all on images that are equally hard."""
    hardness = np.random.default_rng(seed).uniform(size=(count, 1))
    own = np.random.default_rng(seed + 10_000).uniform(size=(count, len(shares)))
    mixed = np.where(own < 0.8, hardness, np.random.default_rng(seed + 20_000).uniform(size=own.shape))
    return [{"top1": (mixed[:, i] < share).astype(float)} for i, share in enumerate(shares)]


def coverage(metric: Metric, truth: float, pairs: list[list[dict[str, NDArray[np.float64]]]]) -> float:
    intervals = [paired_difference(metric, *pair) for pair in pairs]
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


@pytest.mark.parametrize(("ours", "theirs", "count"), [(0.9, 0.92, 200), (0.97, 0.97, 60), (0.5, 0.6, 400)])
def test_intervals_of_shares_hold_the_truth(ours: float, theirs: float, count: int) -> None:
    pairs = [right(ours, theirs, count=count, seed=seed) for seed in range(400)]
    assert coverage(TOP1, ours - theirs, pairs) >= 0.93


@pytest.mark.parametrize("count", [15, 100])
def test_intervals_of_means_hold_the_truth(count: int) -> None:
    pairs = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        theirs = generator.gamma(2.0, 0.3, count)
        pairs.append([{"nll": theirs + generator.normal(0.05, 0.2, count)}, {"nll": theirs}])
    assert coverage(NLL, 0.05, pairs) >= 0.9


def test_models_that_never_disagree_leave_room_for_doubt() -> None:
    ours = {"top1": np.ones(50)}
    found = paired_difference(TOP1, ours, ours)
    assert (found.difference, found.p_value) == (0, 1)
    assert found.low < 0 < found.high
    wider = paired_difference(TOP1, {"top1": np.ones(20)}, {"top1": np.ones(20)})
    assert wider.high > found.high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_p_value_is_mcnemars(gained: int, lost: int) -> None:
    ours = np.array([1.0] * gained + [0.0] * lost + [1.0] * 50)
    theirs = np.array([0.0] * gained + [1.0] * lost + [1.0] * 50)
    found = paired_difference(TOP1, {"top1": ours}, {"top1": theirs})
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected)
    assert found.difference == pytest.approx((gained - lost) / len(ours))
    opposite = paired_difference(TOP1, {"top1": theirs}, {"top1": ours})
    assert (opposite.low, opposite.high) == pytest.approx((-found.high, -found.low))


def test_few_images_and_numbers_that_are_none_decide_nothing() -> None:
    few = {"nll": np.arange(FEWEST_IMAGES - 1.0)}
    found = paired_difference(NLL, few, few)
    assert (found.low, found.high) == (-math.inf, math.inf)
    broken = paired_difference(NLL, {"nll": np.full(20, np.nan)}, {"nll": np.ones(20)})
    assert math.isnan(broken.difference)
    assert judge(Limit(NLL, 1.0), "clean", broken, 20).verdict is Verdict.FAILED


def test_a_metric_that_is_no_mean_is_resampled() -> None:
    generator = np.random.default_rng(2)
    union = generator.integers(50, 100, (60, 3))
    ours, theirs = ({"intersection": (union * share).astype(int), "union": union} for share in (0.9, 0.7))
    miou = next(metric for metric in task_named("segmentation").metrics() if metric.name == "miou")
    found = paired_difference(miou, ours, theirs)
    assert found.low < found.difference < found.high
    assert found.difference == pytest.approx(0.2, abs=0.01)
    assert found.low > 0.15


def test_limits_are_in_the_units_that_people_write() -> None:
    (shares, plain) = parse_limits(["top1=0.5", "inve@0.25=1e-2"], (TOP1, INVE))
    assert (shares.drop, shares.condition) == (0.005, None)
    assert (plain.drop, plain.condition) == (0.01, "0.25")
    conditions = (Clean(), LocalScaling(0.2), LocalScaling(0.25))
    assert [c.name for c in conditions_of(shares, conditions, "inve")] == ["clean"]
    assert [c.name for c in conditions_of(plain, conditions, "inve")] == ["local scaling 0.25"]
    with pytest.raises(DataError, match="not evaluated"):
        conditions_of(parse_limits(["inve@0.3=1"], (INVE,))[0], conditions, "inve")


@pytest.mark.parametrize("text", ["top1", "top1=", "=1", "top1=-1", "top1=nan", "top9=1", "top1=1=2"])
def test_other_limits_are_one_sentence(text: str) -> None:
    with pytest.raises(DataError, match=r"top1=0\.5|expected one of"):
        parse_limits([text], (TOP1, INVE))


@pytest.mark.parametrize(
    ("metric", "difference", "half", "verdict"),
    [
        (TOP1, -0.02, 0.005, Verdict.FAILED),
        (TOP1, -0.002, 0.002, Verdict.PASSED),
        (TOP1, +0.02, 0.005, Verdict.PASSED),
        (TOP1, -0.01, 0.02, Verdict.UNDECIDED),
        (INVE, +0.02, 0.005, Verdict.FAILED),
        (INVE, -0.02, 0.005, Verdict.PASSED),
    ],
)
def test_a_drop_is_judged_by_its_interval(metric: Metric, difference: float, half: float, verdict: Verdict) -> None:
    interval = Interval(difference, difference - half, difference + half)
    found = judge(Limit(metric, 0.005), "clean", interval, 1000)
    assert found.verdict is verdict
    assert (found.needed is not None) == (verdict is Verdict.UNDECIDED)
    assert found.drop == pytest.approx(
        abs(difference) if (difference < 0) == metric.higher_is_better else -abs(difference)
    )


def test_the_images_that_decide_grow_with_the_square_of_the_width() -> None:
    interval = Interval(0.0, -0.02, 0.02)
    assert images_needed(100, interval, 0.01) == 400
    assert images_needed(100, interval, 0.005) == 1600
    assert images_needed(100, interval, 0.0) is None


def test_one_failed_limit_fails_and_an_undecided_one_leaves_it_open() -> None:
    assert overall([Verdict.PASSED, Verdict.UNDECIDED, Verdict.FAILED]) is Verdict.FAILED
    assert overall([Verdict.PASSED, Verdict.UNDECIDED]) is Verdict.UNDECIDED
    assert overall([Verdict.PASSED]) is Verdict.PASSED
