"""Images are prepared ahead of the engines, and exactly as one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from dec_export.bundle.store import Bundle
from dec_export.evaluation.ahead import ahead
from dec_export.evaluation.conditions import LocalScaling, warped
from dec_export.evaluation.plan import make_plan
from dec_export.evaluation.remaining import Clock, in_words
from dec_export.evaluation.worker import Worker
from dec_export.progress import reporting
from dec_export.reference.warp import Phi, warp
from tests.evaluation.trees import class_tree, options


@pytest.mark.parametrize("size", [33, 160])
def test_many_images_are_warped_exactly_as_one(size: int) -> None:
    scaling = LocalScaling(0.4, seed=2)
    phis = [scaling.warp_of(str(number)) for number in range(5)]
    joined = Phi(torch.cat([phi.x for phi in phis]), torch.cat([phi.y for phi in phis]))
    images = np.random.default_rng(0).normal(size=(5, 3, size, size)).astype(np.float32)
    one_by_one = [warp(phi, torch.from_numpy(images[i : i + 1]).double()).float() for i, phi in enumerate(phis)]
    np.testing.assert_array_equal(warped(images, joined), np.concatenate(one_by_one))


def test_stages_hold_what_each_image_gives_alone(small_bundle: Bundle, tmp_path: Path) -> None:
    plan = make_plan(small_bundle, class_tree(tmp_path / "data", 10), options(tmp_path, batch=4))
    worker = Worker(plan)
    preprocessing = worker.models[0].preprocessing
    with ThreadPoolExecutor(3) as pool:
        stages = list(worker.stages(plan.starts, pool))
    assert [(stage.batch.start, stage.last) for stage in stages] == [
        (start, last) for start in (0, 4, 8) for last in (False, True)
    ]
    for stage in stages:
        samples = plan.samples_of(stage.batch.start)
        np.testing.assert_array_equal(stage.labels, [sample.label for sample in samples])
        assert stage.inputs[0] is stage.inputs[1]
        for sample, found in zip(samples, stage.inputs[0], strict=True):
            expected = preprocessing.apply(sample.decode())[None]
            assert stage.condition is not None
            phi = stage.condition.warp_of(sample.name)
            np.testing.assert_array_equal(found, (expected if phi is None else warped(expected, phi))[0])


def test_a_generator_runs_ahead_and_no_further() -> None:
    made: list[int] = []
    third = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(1, 100):
            made.append(number)
            if number == 3:
                third.set()
            yield number

    with closing(ahead(numbers(), 2)) as items:
        assert next(items) == 1
        assert third.wait(10)
    assert made == [1, 2, 3]
    assert list(ahead(iter([4, 5]), 3)) == [4, 5]


def test_an_error_ahead_reaches_the_consumer() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = ahead(failing(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_progress_tells_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("dec_export.evaluation.remaining.time.monotonic", lambda: now[0])
    heard: list[str] = []
    with reporting(lambda text, _: heard.append(text)):
        clock = Clock(10_000, kept=4_000)
        for _ in range(3):
            now[0] += 10
            clock.tell(1_000)
        now[0] += 0.01
        clock.tell(1_000)  # too soon to be read
    assert heard == [
        "5,000 finished, about 50 s left",
        "6,000 finished, about 40 s left",
        "7,000 finished, about 30 s left",
    ]
    assert [in_words(89), in_words(600), in_words(9000)] == ["89 s", "10 min", "2.5 h"]
