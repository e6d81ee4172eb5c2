"""Models with trained weights predict the reference's classes in ONNX, in float32 and in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dec_export.data.digits import compose, source_digits
from dec_export.engines.base import Engine
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.engines.torch import TorchEngine
from dec_export.formats import Format, tolerance_of
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import export
from dec_export.parity.measures.invariance import invariance_of, local_scale, local_scale_phi
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, preprocessing_of
from dec_export.reference.weights.checkpoint import load_reference

# The whole test set of the report; maps of logits are large, and their pixels many.
IMAGES = {"digits": 4000, "digits_segmentation": 200}
PRECISIONS = [("fp32", "fp32"), ("fp16", "fp32"), ("fp32", "fp16"), ("fp16", "fp16")]
BATCH = 50


def run(engine: Engine, inputs: NDArray[np.float32]) -> NDArray[Any]:
    return np.concatenate([engine(inputs[start : start + BATCH])["logits"] for start in range(0, len(inputs), BATCH)])


class Trained:
    """A shipped model, with its float32 reference's results for the test images and for scaled copies of some."""

    def __init__(self, name: str) -> None:
        self.model: DecModel = load_reference(Recipe.named(name))[0]
        preprocessing, count = preprocessing_of(self.model.recipe), IMAGES[name]
        self.inputs = compose(source_digits("test"), count, 3).inputs(preprocessing.mean, preprocessing.std)
        self.few = min(400, count)
        self.phi = local_scale_phi(self.few, 4, self.model.recipe.evaluation.strength)
        self.scaled = local_scale(self.inputs[: self.few], 4, self.model.recipe.evaluation.strength)
        self.logits, self.invariance = self.measure(TorchEngine(self.model))

    def measure(self, engine: Engine) -> tuple[NDArray[Any], float]:
        logits = run(engine, self.inputs)
        terms = invariance_of(self.model.recipe.task, logits[: self.few], run(engine, self.scaled), self.phi)
        return logits, float(terms.mean())


@pytest.fixture(scope="module", params=IMAGES)
def trained(request: pytest.FixtureRequest) -> Trained:
    return Trained(request.param)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "solver_precision"), PRECISIONS)
def test_the_top_class_and_the_invariance_survive(precision: str, solver_precision: str, trained: Trained) -> None:
    engine = OnnxRuntimeEngine(export(lower(trained.model, precision, solver_precision)), threads=1)
    logits, invariance = trained.measure(engine)
    same = (logits.argmax(axis=1) == trained.logits.argmax(axis=1)).mean()
    if (precision, solver_precision) == ("fp32", "fp32"):
        assert same == 1
    else:
        assert same >= 0.995
    allowed = tolerance_of((Format(precision), Format(solver_precision)))
    assert abs(invariance - trained.invariance) <= allowed * trained.invariance
