"""The digits models see the images of a data set exactly as docs/digits.md does, whatever its layout is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.data.digits import DigitImages
from dec_export.engines.base import RunOptions
from dec_export.errors import DataError
from dec_export.evaluation.columns import Table
from dec_export.evaluation.computer import LocalComputer
from dec_export.evaluation.conditions import Clean, Condition
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.models import ModelSource
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.plan import Plan, make_plan
from dec_export.evaluation.run import evaluate
from dec_export.evaluation.worker import Worker
from dec_export.names import LOGITS
from dec_export.parity.measures.invariance import invariance_of, local_scale, local_scale_phi
from dec_export.reference.warp import Phi
from dec_export.tasks import measures
from tests.helpers import datasets

COUNT, BATCH, STRENGTH = 30, 10, 0.25
OPTIONS = EvaluationOptions(engine="torch", baselines=(), run=RunOptions(threads=1), batch=BATCH)
Columns = dict[str, NDArray[Any]]
LAYOUTS: dict[str, Callable[[Path, DigitImages], Path]] = {
    "class-folders": datasets.class_folders,
    "csv": datasets.table,
    "tsv": lambda root, images: datasets.table(root, images, ".tsv"),
    "shards": datasets.shards,
}


class _SameWarps(Condition):
    """The local scaling of docs/digits.md, which draws the warps of all images at once."""

    name, family, strength = "same warps", "local scaling", STRENGTH

    def __init__(self) -> None:
        self.phi = local_scale_phi(COUNT, 4, STRENGTH)

    def warp_of(self, name: str) -> Phi:
        number = int(Path(name).stem)
        return Phi(self.phi.x[number : number + 1], self.phi.y[number : number + 1])


@pytest.fixture(scope="module")
def images() -> DigitImages:
    return datasets.digit_images(COUNT)


def expected(bundle: Bundle, images: DigitImages) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits of the images, and of their copies, that docs/digits.md has."""
    model = ModelSource("torch", bundle.path, "torch", RunOptions(threads=1)).load()
    inputs = images.inputs(bundle.preprocessing.mean, bundle.preprocessing.std)
    found = [
        np.concatenate([model.engine(x[start : start + BATCH])[LOGITS] for start in range(0, COUNT, BATCH)])
        for x in (inputs, local_scale(inputs, 4, STRENGTH))
    ]
    return found[0], found[1]


def columns(plan: Plan) -> tuple[Columns, Columns]:
    """Return the columns of a plan under both conditions, in the order of the images' numbers."""
    table = Table(LocalComputer(Worker(plan), 1).chunks(plan.starts))
    assert not table.skipped
    order = np.argsort([int(Path(sample.name).stem) for sample in plan.data.samples])
    found = [table.of(condition.name, "torch") for condition in plan.conditions]
    return tuple({name: values[order] for name, values in each.items()} for each in found)  # type: ignore[return-value]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_and_invariance_of_every_image_are_those_of_the_docs(
    layout: str, digits_bundle: Bundle, images: DigitImages, tmp_path: Path
) -> None:
    plan = make_plan(digits_bundle, LAYOUTS[layout](tmp_path, images), OPTIONS)
    clean, scaled = columns(replace(plan, conditions=(Clean(), _SameWarps())))
    logits, logits_scaled = expected(digits_bundle, images)
    np.testing.assert_array_equal(clean["predicted"], logits.argmax(axis=1))
    np.testing.assert_array_equal(clean["top1"], logits.argmax(axis=1) == images.labels)
    np.testing.assert_array_equal(scaled["predicted"], logits_scaled.argmax(axis=1))
    terms = invariance_of("classification", logits, logits_scaled, local_scale_phi(COUNT, 4, STRENGTH))
    np.testing.assert_allclose(scaled["inve"], terms, rtol=1e-3, atol=1e-5)


def test_masks_and_equivariance_of_every_image_are_those_of_the_docs(
    map_bundle: Bundle, images: DigitImages, tmp_path: Path
) -> None:
    plan = make_plan(map_bundle, datasets.mask_folders(tmp_path, images), OPTIONS)
    clean, scaled = columns(replace(plan, conditions=(Clean(), _SameWarps())))
    logits, logits_scaled = expected(map_bundle, images)
    miou = next(metric for metric in plan.metrics if metric.name == "miou")
    assert miou.compute(clean) == measures.mean_iou(logits.argmax(axis=1), images.masks, 11)
    terms = invariance_of("segmentation", logits, logits_scaled, local_scale_phi(COUNT, 4, STRENGTH))
    np.testing.assert_allclose(scaled["eqe"], terms, rtol=1e-3, atol=1e-5)


def test_corruptions_on_the_fly_give_a_curve(digits_bundle: Bundle, images: DigitImages, tmp_path: Path) -> None:
    options = replace(OPTIONS, corruptions=("contrast", "impulse_noise"), severities=(5, 1), journal=tmp_path / "j")
    results = evaluate(digits_bundle, datasets.class_folders(tmp_path / "data", images), options)
    found = {(c.family, c.strength): c.metrics["torch"]["top1"] for c in results.conditions}
    assert list(found) == [("clean", 0), *((kind, level) for kind in options.corruptions for level in (5, 1))]
    assert found["clean", 0] > 0.9
    assert found["impulse_noise", 5] < found["impulse_noise", 1]


@pytest.mark.parametrize(
    ("keep", "index", "sentence"),
    [
        (3, None, r"The data have 3 classes, fewer than the 10 of the model"),
        (3, 10, None),
        (3, 11, r"The data have 11 classes, more than the 10 of the model"),
    ],
)
def test_folders_of_classes_fit_the_model_or_are_one_sentence(
    keep: int, index: int | None, sentence: str | None, digits_bundle: Bundle, tmp_path: Path
) -> None:
    for name in datasets.CLASSES[-keep:]:
        datasets.write(tmp_path / "data" / name / "x.png", datasets.png(np.zeros((64, 64), np.uint8)))
    names = "\n".join([*datasets.CLASSES, "more"][: index or 0])
    file = datasets.write(tmp_path / "index.txt", names.encode()) if index else None
    options = replace(OPTIONS, data=DataOptions(class_index=file))
    if sentence is None:
        plan = make_plan(digits_bundle, tmp_path / "data", options)
        assert [sample.label for sample in plan.data.samples] == [7, 8, 9]
        return
    with pytest.raises(DataError, match=sentence):
        make_plan(digits_bundle, tmp_path / "data", options)


def test_labels_that_the_model_does_not_have_are_one_sentence(digits_bundle: Bundle, tmp_path: Path) -> None:
    for name, sentence in (("a.png,10", "The data have 11 classes, more than the 10"), ("a.png", "have no labels")):
        datasets.write(tmp_path / "a.png", datasets.png(np.zeros((64, 64), np.uint8)))
        with pytest.raises(DataError, match=sentence):
            make_plan(digits_bundle, datasets.write(tmp_path / "t.csv", name.encode()), OPTIONS)


def test_data_of_another_task_are_one_sentence(
    digits_bundle: Bundle, map_bundle: Bundle, images: DigitImages, tmp_path: Path
) -> None:
    masks, classes = datasets.mask_folders(tmp_path / "m", images), datasets.class_folders(tmp_path / "c", images)
    for bundle, data in ((digits_bundle, masks), (map_bundle, classes)):
        with pytest.raises(DataError, match=r"The model is for \w+, which needs"):
            make_plan(bundle, data, OPTIONS)


def test_a_mask_of_a_class_that_the_model_lacks_is_counted_or_ignored(
    map_bundle: Bundle, images: DigitImages, tmp_path: Path
) -> None:
    few = datasets.digit_images(2)
    few.masks[0, :5] = 255
    data = datasets.mask_folders(tmp_path, few)
    for ignored, reasons in ((None, 1), (255, 0)):
        plan = make_plan(map_bundle, data, replace(OPTIONS, data=DataOptions(ignored=ignored)))
        worker = Worker(plan)
        found = [worker.decode(sample) for sample in plan.data.samples]
        assert sum(isinstance(each, str) for each in found) == reasons
