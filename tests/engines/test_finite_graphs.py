"""Every exported form returns NaN for an image with a pixel that is not finite, and does not change other outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.onnx_export.tracing import export
from dec_export.recipe.model import BackboneRecipe, HeadRecipe, Recipe
from dec_export.reference.model import create_reference
from tests.conftest import photographs, randomised

VALUES = (np.nan, np.inf, -np.inf)
RESNET = BackboneRecipe(timm="test_resnet", family="resnet", image_size=160, num_classes=10)


def recipes(small: Recipe) -> dict[str, Recipe]:
    """Return a transformer, a segmentation model, and a convolutional backbone without canonicalizers."""
    places = {"augment_layer_id": (1,), "unaugment_layer_id": (1,)}
    head = HeadRecipe(kind="linear", taps=())
    return {
        "classification": small,
        "segmentation": small.model_copy(update={"task": "segmentation", "head": head, **places}),
        "no canonicalizer": small.model_copy(update={"canonicalizer": None, "backbone": RESNET}),
    }


def runner(proto: onnx.ModelProto) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda images: list(session.run(None, {"image": images}))


@pytest.mark.parametrize(
    ("kind", "solver", "precision"),
    [
        *(("classification", solver, "fp32") for solver in ("unroll", "loop", "plugin")),
        ("classification", "unroll", "fp16"),
        ("segmentation", "plugin", "fp32"),
        ("no canonicalizer", "unroll", "fp32"),
    ],
)
def test_any_pixel_that_is_not_finite_makes_every_output_nan(
    kind: str, solver: str, precision: str, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = recipes(small_recipe)[kind]
    model = lower(randomised(create_reference(recipe)), precision)
    proto = export(model, Forms(Solver(solver), tap=1, expose_phi=recipe.canonicalizer is not None))
    images = photographs(160, 2)
    run = runner(proto)
    expected = run(images)
    assert all(np.isfinite(output).all() for output in expected)
    places = np.random.default_rng(3).integers(0, (3, 160, 160), (6, 3))
    for i, place in enumerate([*places.tolist(), [0, 0, 0], [2, 159, 159]]):
        changed = images.copy()
        changed[(1, *place)] = VALUES[i % 3]
        for output, before in zip(run(changed), expected, strict=True):
            assert np.isnan(output[1]).all(), (place, VALUES[i % 3])
            np.testing.assert_array_equal(output[0], before[0])
