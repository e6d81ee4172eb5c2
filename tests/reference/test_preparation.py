"""The inputs of the backbone and of the canonicalizers, which are prepared from one image inside the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision.transforms.v2.functional as transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dec_export.errors import RecipeError
from dec_export.lowering.model import lower
from dec_export.lowering.preparation import LoweredPreparation
from dec_export.onnx_export.tracing import export
from dec_export.recipe.model import Recipe
from dec_export.recipe.preparation import InputRecipe, PreparationRecipe
from dec_export.reference.model import create_reference, preprocessing_of
from dec_export.reference.preparation import prepare, resized
from tests.conftest import photographs, randomised

RAW = InputRecipe(image_size=140, crop_pct=1.0, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1), squash=True)
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module")
def two_branches(small_recipe: Recipe) -> Recipe:
    """Return a recipe whose backbone and canonicalizers see one raw image of 140 pixels in different ways."""
    preparation = PreparationRecipe(resize=184, filter="bicubic", crop=160, **HALVES)
    backbone = small_recipe.backbone.model_copy(update={"preparation": preparation})
    return small_recipe.model_copy(update={"backbone": backbone, "input": RAW})


def raw_images(size: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(photographs(size, count)).double().mul(0.2).add(0.5).clamp(0, 1)


@pytest.mark.parametrize("size", [57, 160, 333])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_an_antialiased_resize_is_pillows(name: str, size: int) -> None:
    image = raw_images(160, 1)[0]
    found = resized(image[None], PreparationRecipe(resize=size, filter=name))[0]
    kind = Image.Resampling[name.upper()]
    channels = [Image.fromarray(channel).resize((size, size), kind) for channel in image.float().numpy()]
    # Pillow computes images of floats in float32.
    np.testing.assert_allclose(found, np.stack([np.asarray(channel) for channel in channels]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_a_resize_and_its_crop_are_torchvisions(name: str, antialias: bool) -> None:
    image = raw_images(160)
    mode = transforms.InterpolationMode[name.upper()]
    expected = transforms.center_crop(transforms.resize(image, [131, 131], mode, antialias=antialias), [100, 100])
    found = resized(image, PreparationRecipe(resize=131, crop=100, filter=name, antialias=antialias))
    # The side that is left over is odd here: torchvision rounds the first row to even, the image processors down.
    assert round((131 - 100) / 2) == 16
    torch.testing.assert_close(found[..., 1:, 1:], expected[..., :-1, :-1], rtol=0, atol=1e-14)


def test_without_a_recipe_the_inputs_are_the_same() -> None:
    image = raw_images(64)
    assert prepare(image, None) is image


@settings(max_examples=25)
@given(
    st.integers(8, 40), st.integers(8, 40), st.integers(0, 7), st.booleans(), st.sampled_from(["bilinear", "bicubic"])
)
def test_the_lowered_preparation_is_the_references(size: int, to: int, less: int, antialias: bool, name: str) -> None:
    recipe = PreparationRecipe(resize=to, crop=to - less, filter=name, antialias=antialias, **HALVES)
    image = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    found = LoweredPreparation(recipe, size)(image)
    torch.testing.assert_close(found, prepare(image, recipe), rtol=0, atol=1e-13)


def test_a_crop_is_at_most_the_resized_image() -> None:
    with pytest.raises(ValueError, match="no larger than the resized image of 100, found 101"):
        PreparationRecipe(resize=100, crop=101)


def test_sizes_must_meet(small_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(small_recipe.to_yaml().replace("image_size: null", "image_size: 200"))
    with pytest.raises(RecipeError, match=r"backbone needs images of 160 pixels, found 200.*input\.image_size"):
        Recipe.load(path)


def test_the_two_branches_read_one_image(two_branches: Recipe) -> None:
    """The backbone sees the image that its preparation makes, and the canonicalizers the one that theirs makes."""
    model = randomised(create_reference(two_branches)).double()
    image = raw_images(140)
    with torch.no_grad():
        logits, phis = model(image)
        seen = prepare(image, two_branches.backbone.preparation)
        plain = two_branches.model_copy(
            update={"backbone": two_branches.backbone.model_copy(update={"preparation": None}), "input": InputRecipe()}
        )
        other = create_reference(plain).double()
        other.load_state_dict(model.state_dict())
        expected = other.answer(seen, phis).logits
        own = other(seen).phis
    assert torch.equal(logits, expected)
    assert not torch.allclose(phis[0].x, own[0].x)


def test_an_export_with_two_branches_stays_within_the_noise(two_branches: Recipe) -> None:
    model = randomised(create_reference(two_branches))
    image = raw_images(140).float()
    session = onnxruntime.InferenceSession(export(lower(model)).SerializeToString())
    found = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0]).double()
    with torch.no_grad():
        rounded = model(image).logits.double()
        exact = model.double()(image.double()).logits
    assert session.get_inputs()[0].shape[1:] == [3, 140, 140]
    assert (found - exact).abs().max() <= 2 * (rounded - exact).abs().max()


def test_a_raw_input_is_neither_shifted_nor_scaled(two_branches: Recipe) -> None:
    preprocessing = preprocessing_of(two_branches)
    assert (preprocessing.size, preprocessing.mean, preprocessing.std) == (140, (0, 0, 0), (1, 1, 1))
    array = preprocessing.apply(Image.new("RGB", (300, 200), (255, 0, 51)))
    np.testing.assert_allclose(array[:, 0, 0], [1, 0, 0.2], atol=1e-7)


def test_a_null_field_of_the_input_is_timms(small_recipe: Recipe) -> None:
    cropped = small_recipe.model_copy(update={"input": InputRecipe(crop_pct=0.875)})
    found, timms = preprocessing_of(cropped), preprocessing_of(small_recipe)
    assert found.crop_pct == 0.875
    assert (found.mean, found.std, found.interpolation, found.size) == (
        timms.mean,
        timms.std,
        timms.interpolation,
        timms.size,
    )


@pytest.mark.parametrize("antialias", [False, True])
def test_antialiasing_of_the_canonicalizers_input_is_the_recipes(small_recipe: Recipe, antialias: bool) -> None:
    """At 160 pixels the two differ visibly in the input of 128, and the export follows each."""
    smaller = small_recipe.canonicalizer.model_copy(update={"image_size": 48, "antialias": antialias})
    model = randomised(create_reference(small_recipe.model_copy(update={"canonicalizer": smaller}))).double()
    image = torch.from_numpy(photographs(160, 2)).double()
    small = transforms.resize(image, [48, 48], transforms.InterpolationMode.BILINEAR, antialias=antialias)
    expected = transforms.normalize(small, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(model.DEM.prepare(image), expected, rtol=0, atol=1e-14)
    with torch.no_grad():
        found, truth = lower(model)(image), model(image)
    torch.testing.assert_close(found.logits, truth.logits, rtol=0, atol=1e-9)
