"""Results per scale, per corruption and per scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dec_export.errors import DataError
from dec_export.evaluation.groups import (
    Corrupted,
    corruption_errors,
    mean_corruption_error,
    rows_by_corruption,
    rows_by_value,
    scene_distances,
    values_of,
)
from dec_export.evaluation.samples import FileSource, Sample
from dec_export.tasks.measures import softmax

ERRORS = {Corrupted("fog", 1): 0.1, Corrupted("fog", 3): 0.3, Corrupted("snow", 2): 0.4}


def sample(name: str, **groups: str) -> Sample:
    return Sample(name, FileSource(Path(name)), label=0, groups=groups)


SCENES = [
    sample(f"cat/{scene}_scale_{scale}.png", scale=scale, scene=f"cat/{scene}")
    for scene in ("a", "b", "c")
    for scale in ("0.7", "1", "1.3")
]


def test_values_are_sorted_as_numbers_and_rows_follow_them() -> None:
    samples = [
        sample("a", scale="10"),
        sample("b", scale="0.7"),
        sample("c"),
        sample("d", scale="10"),
        sample("e", scale="x"),
    ]
    assert values_of(samples, "scale") == ("0.7", "10", "x")
    rows = rows_by_value(samples, "scale")
    assert {value: found.tolist() for value, found in rows.items()} == {"0.7": [1], "10": [0, 3], "x": [4]}
    assert values_of(samples, "corruption") == ()


def test_rows_of_corruptions() -> None:
    samples = [
        sample("a", corruption="snow", severity="2"),
        sample("b", corruption="fog", severity="5"),
        sample("c", corruption="snow", severity="2"),
    ]
    rows = rows_by_corruption(samples)
    assert list(rows) == [("fog", 5), ("snow", 2)]
    assert rows[Corrupted("snow", 2)].tolist() == [0, 2]


def test_the_mean_corruption_error_counts_corruptions_equally() -> None:
    assert corruption_errors(ERRORS) == pytest.approx({"fog": 0.2, "snow": 0.4})
    assert mean_corruption_error(ERRORS) == pytest.approx(0.3)
    assert np.isnan(mean_corruption_error({}))


def test_a_baseline_divides_the_errors_of_each_corruption() -> None:
    baseline = {
        Corrupted("fog", 1): 0.3,
        Corrupted("fog", 3): 0.5,
        Corrupted("snow", 2): 0.5,
        Corrupted("snow", 5): 1.0,
    }
    # (0.1 + 0.3) / (0.3 + 0.5) and 0.4 / 0.5
    assert mean_corruption_error(ERRORS, baseline) == pytest.approx((0.5 + 0.8) / 2)
    assert mean_corruption_error(ERRORS, ERRORS) == pytest.approx(1)


def test_a_baseline_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(DataError, match="has no error of snow at severity 2"):
        mean_corruption_error(ERRORS, {key: 0.5 for key in ERRORS if key.corruption == "fog"})
    with pytest.raises(DataError, match="makes no error under fog"):
        mean_corruption_error(ERRORS, {**ERRORS, Corrupted("fog", 1): 0.0, Corrupted("fog", 3): 0.0})


@pytest.mark.parametrize("part", [1, 2, 4, 9])
def test_the_distances_of_scenes_do_not_depend_on_the_parts(part: int) -> None:
    logits = np.random.default_rng(0).normal(size=(len(SCENES), 5))
    rows = np.arange(len(SCENES))
    parts = [(rows[start : start + part], logits[start : start + part]) for start in range(0, len(rows), part)]
    found = scene_distances(SCENES, reversed(parts))
    assert (found.scales, found.scenes, found.left_out) == ((1.0, 0.7, 1.3), ("cat/a", "cat/b", "cat/c"), 0)
    shares = softmax(logits).reshape(3, 3, 5)
    expected = np.linalg.norm(shares - shares[:, 1:2], axis=2)[:, [1, 0, 2]]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-12)
    assert found.eq_loss == pytest.approx(expected.mean())
    assert found.at_scales() == pytest.approx({0.7: expected[:, 1].mean(), 1.3: expected[:, 2].mean()})


def test_scenes_without_all_scales_are_left_out() -> None:
    found = scene_distances(SCENES[:-1], [(np.arange(8), np.zeros((8, 5)))])
    assert (found.scenes, found.left_out, found.eq_loss) == (("cat/a", "cat/b"), 1, 0)
    nothing = scene_distances([sample("cat/x.png")], [(np.arange(1), np.zeros((1, 5)))])
    assert nothing.scenes == ()
    assert np.isnan(nothing.eq_loss)
    assert nothing.at_scales() == {}
