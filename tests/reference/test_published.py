"""The reference is compared with numbers of the published implementation.

`data/published_outputs.json` holds what the public code of arXiv 2508.14187 (with timm 1.0.31 and torchdeq 0.1.0)
computes in float64 for weights and an image that are formulas, so that anybody can repeat it: load `formula_weights`
into its converted model and run `formula_image` through it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dec_export.recipe.model import BackboneRecipe, CanonicalizerRecipe, Recipe
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from tests.helpers.models import formula_weights

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_outputs.json").read_text())


def formula_image(size: int) -> Tensor:
    """Return a smooth image (1, 3, size, size), float64, as bright and as varied as a normalised photograph."""
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    waves = [torch.sin(9 * x + 4 * y * y + c) + torch.cos(7 * y - 5 * x * y + 2 * c) for c in range(3)]
    return torch.stack(waves)[None]


def model_for(case: str) -> DecModel:
    settings = PUBLISHED["cases"][case]
    recipe = Recipe(
        name="published",
        backbone=BackboneRecipe(
            timm=settings["timm"], family=settings["family"], image_size=settings["image_size"], num_classes=7
        ),
        canonicalizer=CanonicalizerRecipe(coarse_resolution=tuple(settings["coarse_resolution"])),
        augment_layer_id=tuple(settings["augment_layer_id"]),
        deform_resolution=tuple(settings["deform_resolution"]) if settings["deform_resolution"] else None,
    )
    model = create_reference(recipe).double()
    shapes = {name: tuple(value.shape) for name, value in published_state_dict(model).items()}
    load_weights(model, formula_weights(shapes), Path("formula"))
    return model


@pytest.mark.parametrize("case", PUBLISHED["cases"])
def test_the_reference_gives_the_published_numbers(case: str) -> None:
    expected = PUBLISHED["cases"][case]["outputs"]
    with torch.inference_mode():
        logits, phis = model_for(case)(formula_image(PUBLISHED["cases"][case]["image_size"]))
    found = {"logits": logits} | {f"phi_{axis}_{i}": getattr(phi, axis) for i, phi in enumerate(phis) for axis in "xy"}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        truth = np.array(expected[name])
        assert np.linalg.norm(value.numpy().ravel() - truth) <= 1e-10 * np.linalg.norm(truth), name
