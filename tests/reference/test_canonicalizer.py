"""The canonicalizer's step and its input are those of the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import Compose, Normalize, Resize

from dec_export.recipe.model import CanonicalizerRecipe
from dec_export.reference.canonicalizer import Canonicalizer
from dec_export.reference.warp import Phi
from tests.conftest import SMALL_CANONICALIZER, photographs

F64 = torch.float64


@pytest.fixture
def canonicalizer() -> Canonicalizer:
    torch.manual_seed(0)
    return Canonicalizer(SMALL_CANONICALIZER).double()


def test_parameters_have_the_published_names() -> None:
    recipe = CanonicalizerRecipe(coarse_resolution=(10, 4))
    names = set(Canonicalizer(recipe).state_dict())
    expected = {
        f"module_list.{layer}.{module}.{kind}"
        for layer in (0, 1)
        for module in ("0.conv1", "0.norm1", "0.projection", "1.conv1", "1.norm1", "1.projection", "2", "3")
        for kind in ("weight", "bias")
    }
    assert names == expected


def test_equal_channels_have_no_projection() -> None:
    recipe = SMALL_CANONICALIZER.model_copy(update={"channels": (3, 8, 8)})
    assert not any("1.projection" in name for name in Canonicalizer(recipe).state_dict())


def test_a_step_is_what_the_paper_says(canonicalizer: Canonicalizer) -> None:
    """The step of one layer at the identity warp is written with functional operators for comparison."""
    image = torch.from_numpy(photographs(64, 2)).double()
    weights = dict(canonicalizer.module_list[0].named_parameters())
    x = image
    for block, (kernel, pool) in enumerate(((5, 4), (3, 2))):
        padded = F.pad(x, [kernel // 2] * 4, mode="reflect")
        y = F.conv2d(padded, weights[f"{block}.conv1.weight"], weights[f"{block}.conv1.bias"])
        y = y + F.conv2d(x, weights[f"{block}.projection.weight"], weights[f"{block}.projection.bias"])
        y = F.instance_norm(y, weight=weights[f"{block}.norm1.weight"], bias=weights[f"{block}.norm1.bias"])
        x = F.max_pool2d(torch.log1p(torch.exp(y)), pool)
    y = F.conv2d(x, weights["2.weight"], weights["2.bias"])
    y = F.instance_norm(y, weight=weights["3.weight"], bias=weights["3.bias"])
    windows = [slice(8 * i // 6, -(-8 * (i + 1) // 6)) for i in range(6)]
    pooled = torch.stack([torch.stack([y[:, :, r, c].mean((-2, -1)) for c in windows], -1) for r in windows], -2)
    scores = torch.sigmoid(pooled)

    phi = canonicalizer.networks[0].step(Phi.ones(2, 6, image), image)
    torch.testing.assert_close(phi.x, scores[:, 0, :, :-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(phi.y, scores[:, 1, 1:, :].transpose(1, 2), rtol=0, atol=1e-12)


def test_the_input_is_resized_and_normalised_as_torchvision_does(canonicalizer: Canonicalizer) -> None:
    image = torch.from_numpy(photographs(160, 2)).double()
    transform = Compose([Resize((64, 64)), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    torch.testing.assert_close(canonicalizer.prepare(image), transform(image), rtol=0, atol=1e-12)


def test_an_image_of_the_right_size_is_only_normalised(canonicalizer: Canonicalizer) -> None:
    image = torch.from_numpy(photographs(64, 1)).double()
    normalise = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(canonicalizer.prepare(image), normalise(image))


def test_without_scaling_the_image_is_taken_as_it_is() -> None:
    recipe = SMALL_CANONICALIZER.model_copy(update={"scale_image": False})
    image = torch.from_numpy(photographs(72, 1))
    assert Canonicalizer(recipe).prepare(image) is image


def test_a_photograph_does_not_depend_on_its_batch(canonicalizer: Canonicalizer) -> None:
    image = torch.from_numpy(photographs(64, 3)).double()
    together = canonicalizer(image)
    for i in range(3):
        for one, all_of_them in zip(canonicalizer(image[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one.x, all_of_them.x[i : i + 1], rtol=0, atol=1e-9)
            torch.testing.assert_close(one.y, all_of_them.y[i : i + 1], rtol=0, atol=1e-9)


def test_a_flat_image_has_a_uniform_fixed_point(canonicalizer: Canonicalizer) -> None:
    """Every map is constant, InstanceNorm makes it zero, and phi is the sigmoid of the bias."""
    for phi in canonicalizer(torch.full((1, 3, 64, 64), 0.3, dtype=F64)):
        torch.testing.assert_close(phi.x, phi.x[:, :1, :1].expand_as(phi.x), rtol=0, atol=1e-6)
