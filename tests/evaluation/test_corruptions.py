"""Corruptions on the fly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export.errors import DataError
from dec_export.evaluation.conditions import Corruption
from dec_export.evaluation.corruptions.registry import CORRUPTIONS, SEVERITIES, corrupt, corruption_names
from tests.helpers.datasets import photograph_crops

DRAWN = set(CORRUPTIONS) - {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
# The severities between which the published strengths do not move the pixels further: the larger waves of elastic
# transforms come first; fog 4 is as dense as fog 3, and finer; frost from 3 on replaces more of the image by as much.
LEVEL = {"elastic_transform": {3, 4, 5}, "fog": {1, 2, 3}, "frost": {1, 2, 3}}


@pytest.fixture(scope="module")
def photographs() -> list[NDArray[np.uint8]]:
    return list(photograph_crops(224, 4))


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.square(one.astype(float) - other).mean()))


def contrast_left(found: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
    """Return the slope of the regression of the corrupted pixels on the original ones."""
    centred = original - original.mean()
    return float((centred * (found - found.mean())).sum() / np.square(centred).sum())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_photographs_change_more_with_every_severity(name: str, photographs: list[NDArray[np.uint8]]) -> None:
    found = [[corrupt(x, name, severity, f"{i}.png") for i, x in enumerate(photographs)] for severity in SEVERITIES]
    distances = [np.mean([distance(y, x) for y, x in zip(ys, photographs, strict=True)]) for ys in found]
    assert distances[0] > 3
    compared = sorted(LEVEL.get(name, SEVERITIES))
    chosen = [distances[severity - 1] for severity in compared]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == len(chosen)
    assert distances[-1] < 140


def test_frost_hides_more_of_the_image_with_every_severity(photographs: list[NDArray[np.uint8]]) -> None:
    left = [np.mean([contrast_left(corrupt(x, "frost", s, "a"), x) for x in photographs[:2]]) for s in SEVERITIES]
    assert left == sorted(left, reverse=True)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_equal_seeds_and_names_give_equal_pixels_and_others_do_not(name: str) -> None:
    (image,) = photograph_crops(48, 1)
    before = image.copy()
    found = corrupt(image, name, 3, "a.png", seed=5)
    other = corrupt(np.zeros((30, 20, 3), np.uint8), name, 2, "b.png")
    np.testing.assert_array_equal(corrupt(image, name, 3, "a.png", seed=5), found)
    np.testing.assert_array_equal(image, before)
    assert other.shape == (30, 20, 3)
    for changed in (corrupt(image, name, 3, "b.png", seed=5), corrupt(image, name, 3, "a.png", seed=6)):
        assert (changed != found).any() == (name in DRAWN)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.sampled_from(SEVERITIES),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    fill=st.sampled_from([None, 0, 255]),
)
def test_images_of_any_size_keep_shape_and_type(
    name: str, severity: int, height: int, width: int, fill: int | None
) -> None:
    random = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), np.uint8)
    image = random if fill is None else np.full_like(random, fill)
    found = corrupt(image, name, severity, "x")
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    if name not in DRAWN - {"elastic_transform", "glass_blur", "motion_blur"} and fill == 255:
        assert found.min() >= 254  # A white image has nothing to blur, move or quantise.


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "elastic_transform", "fog", "frost"])
def test_an_image_of_another_size_looks_equally_corrupted(name: str) -> None:
    """Lengths grow with the image, so the change of a large image, made small, is about that of the small image."""
    small, large = (list(photograph_crops(size, 4)) for size in (112, 224))
    changes = [
        [distance(corrupt(x, name, severity, str(i)), x) for i, x in enumerate(images) for severity in (3, 5)]
        for images in (small, large)
    ]
    assert 0.75 < np.mean(changes[0]) / np.mean(changes[1]) < 1.33


def test_noise_has_the_stated_strength() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert (corrupt(grey, "gaussian_noise", 1, "a") / 255).std() == pytest.approx(0.08, rel=0.02)
    assert (corrupt(grey, "impulse_noise", 5, "a") != 128).mean() == pytest.approx(0.27, rel=0.03)
    # Counts of a Poisson distribution have their mean as variance.
    assert (corrupt(grey, "shot_noise", 1, "a") / 255).var() == pytest.approx(128 / 255 / 60, rel=0.03)


def test_brightness_and_contrast_are_those_of_the_paper() -> None:
    image = np.array([[[100, 50, 0], [0, 0, 0]]], np.uint8)
    # The value rises by 0.1, and hue and saturation stay; black has neither.
    np.testing.assert_array_equal(corrupt(image, "brightness", 1)[0], [[126, 63, 0], [26, 26, 26]])
    np.testing.assert_array_equal(corrupt(image, "contrast", 1)[0], [[70, 35, 0], [30, 15, 0]])


def test_defocus_turns_a_point_into_a_disk() -> None:
    image = np.zeros((225, 225, 3), np.uint8)
    image[112, 112] = 255
    found = corrupt(image, "defocus_blur", 1)[..., 0]
    assert found[112, 112] == found[112, 114] == found[110, 112] > 0
    assert found[112, 117] == 0


def test_names_of_corruptions() -> None:
    assert corruption_names(["fog", "all"])[0] == "fog"
    assert set(corruption_names(["fog", "all"])) == set(CORRUPTIONS)
    assert len(CORRUPTIONS) == 15
    for wrong in (["rain"], ["fog", "Fog"]):
        with pytest.raises(DataError, match="Unknown corruption"):
            corruption_names(wrong)
    with pytest.raises(DataError, match="Unknown corruption 'all'"):
        corrupt(np.zeros((2, 2, 3), np.uint8), "all", 1)
    with pytest.raises(DataError, match="from 1 to 5, found 6"):
        corrupt(np.zeros((2, 2, 3), np.uint8), "fog", 6)


def test_a_corruption_is_a_condition_with_a_strength() -> None:
    condition = Corruption("fog", 3, seed=7)
    assert (condition.name, condition.family, condition.strength) == ("fog 3", "fog", 3)
    image = np.full((8, 8, 3), 90, np.uint8)
    np.testing.assert_array_equal(condition.change_pixels(image, "x"), corrupt(image, "fog", 3, "x", 7))
    assert condition.warp_of("x") is None
