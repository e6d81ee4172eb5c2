"""The results of an evaluation follow from the columns of its images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dec_export.errors import DataError
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.conditions import Clean, Corruption, LocalScaling
from dec_export.evaluation.facts import GateFacts, Results
from dec_export.evaluation.gate import Verdict
from dec_export.evaluation.results import summarise
from dec_export.evaluation.statistics import paired_difference
from dec_export.tasks import task_named
from dec_export.tasks.measures import calibration_error, calibration_error_of_sums, calibration_terms
from tests.evaluation.simulated import logits_for, plan_of, results_of, samples_of

LABELS = [0, 0, 1, 1, 2, 2] * 5
# The engine takes ten dogs for cats, the baseline two cows for cats.
OURS = [0, 0, 0, 0, 2, 2] * 5
THEIRS = [0, 0, 1, 1, 0, 2] * 2 + [0, 0, 1, 1, 2, 2] * 3
LOGITS = {"engine": logits_for(OURS), "torch": logits_for(THEIRS)}


def test_metrics_differences_and_agreement_of_every_condition() -> None:
    plan = plan_of(samples_of(LABELS), ["engine", "torch"], [Clean(), LocalScaling(0.2)])
    results = results_of(plan, LOGITS)
    clean, scaled = results.conditions
    assert clean.metrics["engine"]["top1"] == pytest.approx(20 / 30)
    assert clean.metrics["torch"]["top1"] == pytest.approx(28 / 30)
    assert "inve" not in clean.metrics["engine"]
    assert scaled.metrics["engine"]["inve"] == pytest.approx(0.2)
    difference = clean.differences["torch"]["top1"]
    assert difference.difference == pytest.approx(-8 / 30)
    assert (difference.words, difference.low < difference.high < 0) == ("lower", True)
    assert clean.differences["torch"]["nll"].words == "higher"
    assert scaled.differences["torch"]["inve"].words == "equal"
    assert clean.agreement == {"torch": pytest.approx(18 / 30)}


def test_a_model_alone_has_no_differences() -> None:
    results = results_of(plan_of(samples_of(LABELS), ["engine"]), {"engine": LOGITS["engine"]})
    assert results.conditions[0].differences == {}
    assert results.disagreements == ()
    assert results.gate is None


def test_confusions_by_their_number() -> None:
    results = results_of(plan_of(samples_of(LABELS), ["engine", "torch"]), LOGITS)
    first, second = results.confusions
    assert (first.label, first.predicted, first.images) == ("dog", "cat", {"engine": 10, "torch": 0})
    assert (second.label, second.predicted, second.images) == ("<b>cow</b>", "cat", {"engine": 0, "torch": 2})
    assert results.confusion_matrix["engine"] == ((10, 0, 0), (10, 0, 0), (0, 0, 10))


def test_the_images_that_differ_most_come_first() -> None:
    theirs = LOGITS["engine"].copy()
    theirs[7] = [0, 2, 0]
    theirs[3] = [0, 9, 0]
    results = results_of(
        plan_of(samples_of(LABELS), ["engine", "torch"]), {"engine": LOGITS["engine"], "torch": theirs}
    )
    assert [one.name for one in results.disagreements] == ["003.png", "007.png"]
    assert results.disagreements[0].label == "dog"
    assert results.disagreements[0].predictions == {"engine": "cat", "torch": "dog"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong_and_fail(value: float) -> None:
    """Comparisons with NaN are false, so such an image would otherwise have the best rank."""
    ours = logits_for(LABELS)
    ours[4] = value
    plan = plan_of(samples_of(LABELS), ["engine", "torch"], limits=["top1=50", "nll=9"])
    results = results_of(plan, {"engine": ours, "torch": logits_for(LABELS)})
    assert results.conditions[0].metrics["engine"]["top1"] == pytest.approx(29 / 30)
    assert results.conditions[0].differences["torch"]["nll"].words == "not finite"
    assert results.disagreements[0].name == "004.png"
    assert results.disagreements[0].predictions["engine"] == "not finite"
    assert results.gate is not None
    assert [one.verdict for one in results.gate.judgements] == [Verdict.PASSED, Verdict.FAILED]
    assert sum(map(sum, results.confusion_matrix["engine"])) == 29
    assert json.loads(results.model_dump_json())["conditions"][0]["metrics"]["engine"]["nll"] is None


def test_pixels_whose_logits_are_not_finite_fail() -> None:
    logits = np.zeros((2, 3, 4, 4), np.float32)
    logits[0, 1, 0, 0] = np.nan
    columns = task_named("segmentation").image_columns(logits, np.zeros((2, 4, 4), np.int64), None)
    for metric in task_named("segmentation").metrics():
        assert np.isnan(metric.compute(columns))
        assert metric.compute({name: values[1:] for name, values in columns.items()}) >= 0
    assert columns["counted"].tolist() == [16, 16]


def test_images_without_a_label_count_for_invariance_alone() -> None:
    plan = plan_of(samples_of([*LABELS[:20], *[None] * 10]), ["engine", "torch"], [Clean(), LocalScaling(0.1)])
    results = results_of(plan, LOGITS)
    assert (results.images, results.labelled) == (30, 20)
    top1 = np.equal(OURS[:20], LABELS[:20]).mean()
    assert results.conditions[0].metrics["engine"]["top1"] == pytest.approx(top1)
    assert results.conditions[1].metrics["engine"]["inve"] == pytest.approx(0.1)


def test_groups_of_images_and_the_mean_corruption_error() -> None:
    groups = [{"corruption": ["fog", "snow"][i % 2], "severity": str(1 + i % 3)} for i in range(30)]
    results = results_of(plan_of(samples_of(LABELS, groups), ["engine", "torch"]), LOGITS)
    found = {(one.group, one.value): one for one in results.groups}
    assert [key for key in found if key[0] == "severity"] == [("severity", "1"), ("severity", "2"), ("severity", "3")]
    assert len([key for key in found if key[0] == "corruption and severity"]) == 6
    right = np.equal(OURS, LABELS)
    assert found["corruption", "fog"].images == 15
    assert found["corruption", "fog"].metrics["engine"]["top1"] == pytest.approx(right[::2].mean())
    assert found["corruption and severity", "snow 2"].metrics["engine"]["top1"] == pytest.approx(right[1::6].mean())
    errors = [[1 - right[i::6].mean() for i in places] for places in ((0, 2, 4), (1, 3, 5))]
    assert results.corruption_error["engine"] == pytest.approx(np.mean(errors))


def test_corruptions_made_on_the_fly_have_a_mean_error() -> None:
    plan = plan_of(samples_of(LABELS), ["engine"], [Clean(), Corruption("fog", 1), Corruption("fog", 2)])
    assert results_of(plan, {"engine": LOGITS["engine"]}).corruption_error == {"engine": pytest.approx(1 / 3)}


def test_a_limit_that_is_exceeded_by_far_fails_and_one_within_noise_is_open() -> None:
    plan = plan_of(samples_of(LABELS), ["engine", "torch"], limits=["top1=1", "top1=25"])
    gate = results_of(plan, LOGITS).gate
    assert gate is not None
    assert [one.verdict for one in gate.judgements] == [Verdict.FAILED, Verdict.UNDECIDED]
    assert gate.verdict is Verdict.FAILED
    assert gate.judgements[0].drop == pytest.approx(8 / 30)


def test_about_the_number_of_images_that_would_tell_does_tell() -> None:
    def gate_of(times: int) -> GateFacts:
        plan = plan_of(samples_of(LABELS * times), ["engine", "torch"], limits=["top1=25"])
        found = results_of(plan, {name: np.concatenate([one] * times) for name, one in LOGITS.items()}).gate
        assert found is not None
        return found

    needed = gate_of(1).judgements[0].needed
    assert needed is not None
    assert gate_of(needed // 60).verdict is Verdict.UNDECIDED
    assert gate_of(needed // 25).verdict is Verdict.FAILED


def test_results_survive_json() -> None:
    plan = plan_of(samples_of(LABELS), ["engine", "torch"], [Clean(), LocalScaling(0.2)], ["top1=1"])
    results = results_of(plan, LOGITS, {"a\udcff.png": "no image"})
    text = json.dumps(results.model_dump(mode="json"), allow_nan=False)
    assert list(results.skipped) == ["a\\udcff.png"]
    assert Results.model_validate(json.loads(text)) == results


def test_no_image_at_all_is_one_sentence() -> None:
    plan = plan_of(samples_of(LABELS), ["engine"])
    empty = Chunk(0, np.zeros(0, np.int64), {}, {"000.png": "It is damaged."})
    with pytest.raises(DataError, match=r"None of the 30 images can be used: It is damaged\."):
        summarise(plan, [empty], ["engine"])


def test_the_calibration_error_follows_from_sums() -> None:
    generator = np.random.default_rng(0)
    confidence = np.append(generator.uniform(0.1, 1, 500), 1.0)
    columns = {"confidence": confidence, "top1": (generator.uniform(size=501) < confidence).astype(float)}
    sums = {name: values.sum(axis=0)[None] for name, values in calibration_terms(columns).items()}
    assert calibration_error_of_sums(sums) == pytest.approx(calibration_error(columns), rel=1e-6)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_every_metric_that_follows_from_sums_is_the_same_by_them(task: str) -> None:
    generator = np.random.default_rng(1)
    shape = (6, 3) if task_named(task).logits_shape(3, 5) == (3,) else (6, 3, 5, 5)
    logits = generator.normal(size=shape).astype(np.float32)
    labels = generator.integers(0, 3, (shape[0], *shape[2:]))
    columns = task_named(task).image_columns(logits, labels, None)
    for metric in task_named(task).metrics():
        if metric.sums is not None:
            sums = {name: values.sum(axis=0)[None] for name, values in metric.sums.terms(columns).items()}
            assert metric.sums.compute(sums) == pytest.approx(metric.compute(columns), rel=1e-6)


def test_intervals_are_the_same_in_every_run() -> None:
    generator = np.random.default_rng(4)
    miou = next(metric for metric in task_named("segmentation").metrics() if metric.name == "miou")
    union = generator.integers(50, 100, (40, 3))
    ours, theirs = ({"intersection": generator.integers(0, 50, (40, 3)), "union": union} for _ in range(2))
    assert paired_difference(miou, ours, theirs) == paired_difference(miou, ours, theirs)
