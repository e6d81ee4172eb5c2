"""The classical canonicalizer equals the published one for a single image, and images of a batch do not mix.

`data/published_choices.json` holds what the public code of arXiv 2508.14187 computes in float64, one image at a time,
for weights and images that are formulas: `formula_weights` and `images`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dec_export.errors import CheckpointError, RecipeError
from dec_export.recipe.canonicalizers import DiscreteCanonicalizerRecipe
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.stages import warped_places
from dec_export.reference.discrete import DiscreteCanonicalizer, candidate_phis, choose
from dec_export.reference.model import DecModel, create_reference, predict
from dec_export.reference.trace import trace
from dec_export.reference.warp import Phi, unwarp, warp
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.fitting import load_weights, published_state_dict
from tests.conftest import photographs, randomised
from tests.helpers.discrete import discrete_recipe
from tests.helpers.models import formula_weights
from tests.reference.test_published import formula_image

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_choices.json").read_text())


def images() -> Tensor:
    """Return three smooth images of 160 pixels, float64, that lead to three choices."""
    waves, ramp = formula_image(160), torch.linspace(0, 1, 160, dtype=torch.float64)
    return torch.cat([waves, waves.flip(-1) * ramp, waves.flip(-2) * (1 - ramp)])


def published_recipe() -> Recipe:
    recipe = discrete_recipe()
    canonicalizer = DiscreteCanonicalizerRecipe(
        kind="discrete",
        values=tuple(PUBLISHED["values"]),
        limit=PUBLISHED["limit"],
        kernel_sizes=tuple(PUBLISHED["kernel_sizes"]),
    )
    backbone = recipe.backbone.model_copy(update={"num_classes": 7})
    return recipe.model_copy(update={"canonicalizer": canonicalizer, "backbone": backbone})


def published_weights(model: DecModel) -> Weights:
    """Return formula weights for a model; the candidates are those of its recipe."""
    state = published_state_dict(model)
    fixed = {name: value.double() for name, value in state.items() if "deform_params" in name}
    return {**formula_weights({k: tuple(v.shape) for k, v in state.items() if k not in fixed}), **fixed}


@pytest.fixture(scope="module")
def model() -> DecModel:
    model = create_reference(published_recipe()).double()
    load_weights(model, published_weights(model), Path("formula"))
    return model


def canonicalizer_of(model: DecModel) -> DiscreteCanonicalizer:
    assert isinstance(model.DEM, DiscreteCanonicalizer)
    return model.DEM


def close(found: Tensor, expected: object, tolerance: float = 1e-10) -> bool:
    truth = np.array(expected).ravel()
    return bool(np.linalg.norm(found.numpy().ravel() - truth) <= tolerance * np.linalg.norm(truth))


def test_the_reference_gives_the_published_numbers(model: DecModel) -> None:
    with torch.inference_mode():
        scores = canonicalizer_of(model).scores(images())
        logits, (phi,) = model(images())
        canonical = warp(phi, images())
        unwarped = unwarp(phi, canonical)
    stride = PUBLISHED["stride"]
    assert scores.argmax(dim=1).tolist() == PUBLISHED["chosen"]
    assert close(scores, PUBLISHED["scores"])
    assert close(canonical[..., ::stride, ::stride], PUBLISHED["canonical"])
    assert close(logits, PUBLISHED["logits"])
    # The published code computes one linspace of the inverse warp in float32.
    assert close(unwarped[..., ::stride, ::stride], PUBLISHED["unwarped"], 1e-6)
    for row, candidate in enumerate(PUBLISHED["chosen"]):
        assert torch.equal(phi.x[row], canonicalizer_of(model).deform_params_x[candidate])
        assert torch.equal(phi.y[row], canonicalizer_of(model).deform_params_y[candidate])


def test_every_image_of_a_batch_is_answered_as_if_it_were_alone(model: DecModel) -> None:
    """The published code mixes candidates and images of a batch; see docs/semantics.md, section 12."""
    with torch.inference_mode():
        together = model(images())
        alone = [model(image[None]) for image in images()]
    for row, single in enumerate(alone):
        assert torch.equal(together.phis[0].x[row], single.phis[0].x[0])
        torch.testing.assert_close(together.logits[row], single.logits[0], rtol=1e-12, atol=1e-12)


def test_candidates_have_x_outer_and_y_inner_and_vary_in_the_middle() -> None:
    recipe = DiscreteCanonicalizerRecipe(kind="discrete", values=(0.8, 1.0), limit=5)
    phi = candidate_phis(recipe)
    assert phi.x.shape == phi.y.shape == (25, 8, 7)
    assert phi.x.dtype == torch.float32
    for i in range(5):
        for j in range(5):
            assert torch.equal(phi.x[5 * i + j], phi.x[5 * i])
            assert torch.equal(phi.y[5 * i + j], phi.y[j])
            assert torch.equal(phi.x[5 * i], phi.y[i])
    assert (phi.x[:, :, [0, 1, 5, 6]] == 1).all()
    last_rows = [(0.8, 0.8), (0.8, 1.0), (1.0, 0.8), (1.0, 1.0)]
    for i, rows in enumerate(last_rows):
        np.testing.assert_allclose(phi.y[i, -2:, 3], rows, rtol=1e-7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=30)
def test_the_largest_score_is_chosen_and_the_first_of_equal_scores(seed: int, batch: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (batch, count), generator=generator).double()
    steps = torch.arange(count, dtype=torch.float64)[:, None, None].expand(count, 4, 3)
    chosen = choose(scores, Phi(steps, steps)).x[:, 0, 0]
    for row, candidate in enumerate(chosen.long().tolist()):
        assert scores[row, candidate] == scores[row].max()
        assert (scores[row, :candidate] < scores[row, candidate]).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_give_a_phi_that_is_nan(bad: float) -> None:
    scores = torch.tensor([[0.0, bad, 1.0], [0.0, 1.0, 2.0]])
    steps = torch.ones(3, 4, 3)
    found = choose(scores, Phi(steps, steps))
    assert found.x[0].isnan().all()
    assert found.y[0].isnan().all()
    assert torch.equal(found.x[1], steps[0])


def test_beit_warps_the_image_too() -> None:
    """DEC never warps the image of BEiT; the classical canonicalizer does."""
    recipe = discrete_recipe(family="beit", limit=2)
    model = randomised(create_reference(recipe)).double()
    pixels = torch.from_numpy(photographs(recipe.image_size, 1)).double()
    with torch.inference_mode():
        logits, (phi,) = model(pixels)
        expected, unwarped = model.backbone(warp(phi, pixels)), model.backbone(pixels)
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, unwarped)
    assert warped_places(recipe, model.backbone, 1) == {-1: 0}


def test_segmentation_unwarps_the_logits() -> None:
    model = randomised(create_reference(discrete_recipe(segmentation=True, limit=2))).double()
    pixels = torch.from_numpy(photographs(160, 2)).double()
    with torch.inference_mode():
        logits, (phi,) = model(pixels)
        inner = predict(model.recipe, model.backbone, model.decoder, warp(phi, pixels), [])
    torch.testing.assert_close(logits, unwarp(phi, inner))
    assert not torch.allclose(logits, inner)


def test_a_trace_has_the_phi_and_no_solver(model: DecModel) -> None:
    with torch.inference_mode():
        traced = trace(model, images())
        again = trace(model, images(), [Phi(*(torch.ones_like(axis) for axis in traced.output.phis[0]))])
        plain = model.backbone(images())
    assert traced.solves == []
    assert len(traced.output.phis) == 1
    torch.testing.assert_close(again.output.logits, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("segmentation", "places"),
    [
        (False, {"augment_layer_id": (-1, 0, 1)}),
        (False, {"augment_layer_id": (0,)}),
        (False, {"unaugment_layer_id": (-1,)}),
        (True, {"augment_layer_id": (0,), "unaugment_layer_id": (0,)}),
        (False, {"deform_resolution": (32, 32)}),
        (False, {"interpolation_mode": "nearest"}),
    ],
)
def test_other_places_are_refused(segmentation: bool, places: dict[str, object]) -> None:
    document = discrete_recipe(segmentation=segmentation).model_dump() | places
    with pytest.raises(ValueError, match="a discrete canonicalizer warps"):
        Recipe.model_validate(document)


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = discrete_recipe()
    (tmp_path / "cannon.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "cannon.yaml") == recipe
    assert (recipe.layers, recipe.coarse_resolutions, recipe.unwarps_output) == (1, (8,), False)


class TestCheckpoints:
    def file(self, weights: Weights, folder: Path) -> Path:
        published = {key.replace("DEM.", "cannonicalizer."): value.float() for key, value in weights.items()}
        torch.save({"epoch": 3, "state_dict": published}, folder / "model_best.pth.tar")
        return folder / "model_best.pth.tar"

    def test_published_keys_load(self, model: DecModel, tmp_path: Path) -> None:
        found, source = load_reference(published_recipe(), self.file(published_weights(model), tmp_path))
        assert source.canonicalizer == "checkpoint"
        for name, value in published_state_dict(found).items():
            assert torch.equal(value, published_state_dict(model)[name].to(value.dtype)), name

    def test_other_values_are_refused_by_the_first_difference(self, model: DecModel, tmp_path: Path) -> None:
        weights = published_weights(model)
        weights["DEM.deform_params_y"] = weights["DEM.deform_params_y"].clone()
        weights["DEM.deform_params_y"][3, 7, 2] = 0.25
        with pytest.raises(CheckpointError, match=r"has the step 0.25 at \[3, 7, 2\].*values \[0.5, 2.0, 1.0\] give"):
            load_reference(published_recipe(), self.file(weights, tmp_path))

    def test_another_limit_is_refused(self, model: DecModel, tmp_path: Path) -> None:
        weights = published_weights(model)
        weights |= {key: value[:4] for key, value in weights.items() if "deform_params" in key}
        with pytest.raises(CheckpointError, match="holds 4 candidates, and the recipe's limit of 3 gives 9"):
            load_reference(published_recipe(), self.file(weights, tmp_path))

    def test_a_backbone_alone_is_refused(self, model: DecModel, tmp_path: Path) -> None:
        weights = {key: value for key, value in published_weights(model).items() if not key.startswith("DEM.")}
        with pytest.raises(CheckpointError, match="it has no canonicalizer"):
            load_reference(published_recipe(), self.file(weights, tmp_path))


def test_a_recipe_of_deep_equilibrium_needs_a_place(small_recipe: Recipe) -> None:
    """A backbone that passes none of the places is refused for DEC, as before."""
    with pytest.raises(RecipeError, match="would have no effect"):
        create_reference(small_recipe.model_copy(update={"augment_layer_id": (99,)}))
