"""Fixtures that the tests share: small models that use every feature, and real photographs."""

from __future__ import annotations

import os
from pathlib import Path

# Before the hub's client is imported: the tests mean random weights, also where pretrained ones could be had.
os.environ["HF_HUB_OFFLINE"] = "1"

from tests import shapes

# Before the modules that it checks are imported.
shapes.install()

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.data.images import Preprocessing, load_images
from dec_export.engines.tensorrt.flavours import TENSORRT_RTX, why_missing
from dec_export.recipe.model import BackboneRecipe, CanonicalizerRecipe, Recipe
from dec_export.reference.model import DecModel, create_reference
from tests.helpers import build_bundle

SMALL_CANONICALIZER = CanonicalizerRecipe(
    coarse_resolution=(6, 4), channels=(3, 8, 12), kernel_sizes=(5, 3), pool_rates=(4, 2), image_size=64
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out every test that builds a model or a bundle")
    parser.addoption("--large", action="store_true", help="prove every recipe, which takes minutes more")


# Fixtures that build bundles, and folders whose tests build models or compile kernels: tens of seconds each.
_SLOW_FIXTURES = {"small_bundle", "served", "digits_bundle", "map_bundle", "bundles", "built"}
_SLOW_FOLDERS = {"golden", "serving", "onnx_export", "plugins", "gpu", "bench", "tensorrt", "bundle"}
# Files whose tests run whole commands, or train and export models.
_SLOW_FILES = ("test_cli", "test_children", "test_shipped", "test_train", "test_ser_", "test_recipes_", "test_guides")
_SLOW_FILES += ("test_examples", "test_wheel", "test_openvino", "test_finite_graphs", "test_threads")
_SLOW_FILES += ("test_published_end", "test_published_measures", "test_discrete_bundle", "test_ser_published")


def _is_fast(item: pytest.Item) -> bool:
    folders = set(item.path.relative_to(item.config.rootpath).parts)
    used = set(getattr(item, "fixturenames", ()))
    slow = folders & _SLOW_FOLDERS or used & _SLOW_FIXTURES or item.path.name.startswith(_SLOW_FILES)
    return not (slow or item.get_closest_marker("slow"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=[item for item in items if not _is_fast(item)])
        items[:] = [item for item in items if _is_fast(item)]
    # Whole models first, so that no worker is left with one at the end.
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, _is_fast(item)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    # pytest-xdist runs two workers on two cores.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """Return a ViT for 160 pixels, which timm has for tests, with two small canonicalizers of another input size."""
    return Recipe(
        name="small",
        backbone=BackboneRecipe(timm="test_vit", family="vit", image_size=160, num_classes=10),
        canonicalizer=SMALL_CANONICALIZER,
    )


@pytest.fixture
def small_model(small_recipe: Recipe) -> DecModel:
    return randomised(create_reference(small_recipe))


def randomised(model: DecModel, seed: int = 7, strength: float = 0.05) -> DecModel:
    """Change every weight a little, because initial zeros and ones would hide a weight that is never used."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
    return model


def photographs(size: int, count: int = 8) -> NDArray[np.float32]:
    """Return real photographs, prepared for a model of this input size."""
    preprocessing = Preprocessing(size, 0.9, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = load_images(preprocessing, count)
    assert "photographs" in images.source
    return images.array


@pytest.fixture(scope="session")
def small_bundle(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle that was built and proved; tests that change its files must work on a copy."""
    out = tmp_path_factory.mktemp("bundles") / "small"
    return build_bundle(small_recipe, out, samples=3)


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle that also returns the feature map after its second block."""
    return build_bundle("digits", tmp_path_factory.mktemp("bundles") / "digits", engines=["none"], tap=1)


@pytest.fixture(scope="session")
def map_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle("digits_segmentation", tmp_path_factory.mktemp("bundles") / "maps", engines=["none"])


# What a machine without a GPU must say of GPU engines; tests/gpu holds what one with a GPU must do.
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
needs_rtx = pytest.mark.skipif(why_missing(TENSORRT_RTX) is not None, reason="TensorRT for RTX is not installed")


@pytest.fixture
def small_recipe_file(small_recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(small_recipe.to_yaml())
    return path
