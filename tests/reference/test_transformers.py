"""The reference is compared with numbers of the published program on transformers, read from files as it writes them.

`data/published_transformers.json` holds what the public code of arXiv 2508.14187 (with transformers 4.44.2) computes in
float64, from raw images of 210 pixels, with its models made small and with weights that are formulas: the keys and
shapes of its files, and the logits of the first image alone, for segmentation at every 50th row and column from the
10th on. Alone, because the published classical canonicalizer mixes the images of a batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel
from dec_export.reference.weights.checkpoint import load_reference
from tests.helpers.published import TRANSFORMERS, create_small, small_recipe, write_files
from tests.reference.test_published import formula_image


@pytest.fixture(autouse=True)
def _small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", create_small)


def raw_image(size: int) -> Tensor:
    return (0.5 + 0.2 * formula_image(size)).clamp(0, 1)


def load(folder: Path, case: str) -> tuple[Recipe, DecModel]:
    recipe = small_recipe(folder, case)
    model, source = load_reference(recipe, write_files(folder, case), strict=True)
    assert source.backbone == "checkpoint"
    return recipe, model.double()


@pytest.mark.parametrize("case", TRANSFORMERS["cases"])
def test_the_files_of_the_published_program_give_its_numbers(case: str, tmp_path: Path) -> None:
    recipe, model = load(tmp_path, case)
    with torch.inference_mode():
        logits = model(raw_image(recipe.image_size)).logits
    if logits.ndim == 4:
        logits = logits[:, :, 10::50, 10::50]
    truth = np.array(TRANSFORMERS["cases"][case]["logits"])
    assert np.linalg.norm(logits.numpy().ravel() - truth) <= 1e-10 * np.linalg.norm(truth)
