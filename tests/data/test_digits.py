"""The digit images show real digits at exact scales, no digit is in two splits, and the images never change."""

from __future__ import annotations

import sys
from hashlib import sha256
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from dec_export.data.digits import (
    BACKGROUND,
    BOX_SIZE,
    CELL_SIZE,
    CENTRES,
    INK,
    MAX_SCALE,
    MIN_SCALE,
    compose,
    compose_centred,
    render,
    source_digits,
)
from dec_export.errors import DecExportError

SPLITS = ("train", "validation", "test")


def draw(digit: NDArray[np.float64], scale: float, centre: tuple[float, float] = (32.0, 32.0)) -> NDArray[np.float64]:
    return render(digit, np.array(centre), np.array(scale))


def test_every_digit_of_the_data_set_is_in_exactly_one_split() -> None:
    indices = np.concatenate([source_digits(split).indices for split in SPLITS])
    assert np.array_equal(np.sort(indices), np.arange(1797))


def test_every_class_is_in_every_split() -> None:
    for split in SPLITS:
        counts = np.bincount(source_digits(split).labels, minlength=10)
        assert counts.min() >= 10


def test_images_show_only_digits_of_their_split() -> None:
    for split in SPLITS:
        digits = source_digits(split)
        images = compose(digits, 50, 3)
        assert set(images.sources.ravel()) <= set(digits.indices)
        of_index = dict(zip(digits.indices, digits.labels, strict=True))
        assert [of_index[source] for source in images.sources[:, 0]] == list(images.labels)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    digits = source_digits("train")
    once, again, other = (compose(digits, 20, seed).pixels.tobytes() for seed in ((1, 2), (1, 2), (1, 3)))
    assert once == again != other


def test_the_bytes_are_those_the_shipped_models_were_trained_on() -> None:
    images = compose(source_digits("train"), 64, (0, 0, 0))
    assert (
        sha256(images.pixels.tobytes()).hexdigest()
        == "badcadba198b9d2ff684560ec625531f9e56efea0d73b4847b9ccffe65c946c7"
    )


def test_a_digit_whose_pixels_are_the_images_is_copied() -> None:
    """At scale 0.5, the pixels of the 8 x 8 digit coincide with pixels of the image."""
    digit = source_digits("test").pixels[0]
    image = draw(digit, 0.5)
    assert np.abs(image[28:36, 28:36] - digit).max() < 1e-15
    assert image.sum() == pytest.approx(digit.sum(), rel=1e-12)


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.0, 1.33, 2.0])
def test_a_box_has_exactly_the_scales_size(scale: float) -> None:
    image = draw(np.ones((8, 8)), scale, (30.2, 33.1))
    centres = np.arange(64) + 0.5
    for axis, centre in ((0, 30.2), (1, 33.1)):
        inside = np.abs(centres - centre) < scale * BOX_SIZE / 2
        assert np.array_equal(image.any(axis=axis), inside)


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.0, 1.4])
def test_a_digit_scales_about_its_centre(scale: float) -> None:
    """The ink's centroid stays in its place, and its spread, without the blur of pixels, grows with the scale."""
    digit = source_digits("test").pixels[1]
    (centroid, variance), (largest_centroid, largest_variance) = (moments(draw(digit, s)) for s in (scale, 2.0))
    ratio = scale / 2.0
    assert centroid == pytest.approx(ratio * largest_centroid, abs=0.15)
    # A source pixel is a triangle of variance 1/6 of its squared width, or of an image's pixel if that is larger.
    blur, largest_blur = max(1.0, 2 * scale) ** 2 / 6, 4.0**2 / 6
    assert variance - blur == pytest.approx(ratio**2 * (largest_variance - largest_blur), rel=0.06)


def moments(image: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and the variance of the ink's x coordinate, measured from the image's centre."""
    line, weights = np.arange(64) + 0.5 - 32, image.sum(axis=0) / image.sum()
    mean = float(weights @ line)
    return mean, float(weights @ (line - mean) ** 2)


def test_scales_are_independent_and_span_the_interval() -> None:
    scales = compose(source_digits("train"), 3000, 0).scales
    assert MIN_SCALE <= scales.min() < MIN_SCALE + 0.01
    assert MAX_SCALE - 0.01 < scales.max() <= MAX_SCALE
    assert np.abs(np.corrcoef(scales.T) - np.eye(3)).max() < 0.06  # three standard errors


def test_digits_stay_in_their_cells() -> None:
    images = compose(source_digits("train"), 500, 0)
    reach = np.abs(images.shifts) + images.scales[..., None] * BOX_SIZE / 2
    assert reach.max() <= CELL_SIZE / 2 + 1e-12
    assert CENTRES.min() >= CELL_SIZE / 2
    assert CENTRES.max() <= 64 - CELL_SIZE / 2
    apart = np.abs(CENTRES[:, None] - CENTRES[None]).max(axis=2)[~np.eye(3, dtype=bool)]
    assert apart.min() >= CELL_SIZE


def test_a_scale_that_was_asked_for_is_the_labelled_digits() -> None:
    digits = source_digits("test")
    images = compose(digits, 2 * len(digits.pixels), 0, scale=0.4)
    assert (images.scales[:, 0] == 0.4).all()
    assert images.scales[:, 1:].std() > 0.3
    assert np.array_equal(np.bincount(images.sources[:, 0])[np.sort(digits.indices)], np.full(len(digits.pixels), 2))
    assert (compose(digits, 5, 0, scale=0.4, every=True).scales == 0.4).all()


def test_masks_are_where_the_ink_is() -> None:
    digits = source_digits("test")
    images = compose(digits, 20, 0)
    assert np.array_equal(images.masks != BACKGROUND, images.pixels >= INK)
    labelled = images.masks[:, 32:, 16:48]
    for mask, label in zip(labelled, images.labels, strict=True):
        assert set(np.unique(mask)) == {label, BACKGROUND}


def test_inputs_are_normalised_like_a_photograph() -> None:
    images = compose(source_digits("test"), 2, 0)
    inputs = images.inputs((0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    assert inputs.shape == (2, 3, 64, 64)
    assert inputs.dtype == np.float32
    expected = (images.pixels / 255 - 0.3) / 0.1
    assert np.abs(inputs[:, 2] - expected).max() < 1e-5  # float32 at values up to 7


@pytest.mark.parametrize("scale", [0.39, 2.01, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(DecExportError, match="scale must lie in"):
        compose(source_digits("test"), 1, 0, scale=scale)


def test_without_scikit_learn_a_sentence_says_what_to_install() -> None:
    missing = {"sklearn": None, "sklearn.datasets": None}
    with (
        mock.patch.dict(sys.modules, missing),
        pytest.raises(DecExportError, match=r"pip install 'dec-export\[demo\]'"),
    ):
        source_digits("test")


def test_centred_digits_of_equal_scales_are_equal_and_other_scales_change_only_their_own_cell() -> None:
    digits, chosen = source_digits("test"), np.array([[1, 2, 3], [4, 5, 6]])
    scales = np.ones((2, 3))
    images = compose_centred(digits, chosen, scales)
    assert np.array_equal(compose_centred(digits, chosen, scales).pixels, images.pixels)
    assert np.array_equal(images.labels, digits.labels[chosen[:, 0]])
    assert not images.shifts.any()
    scales[:, 0] = MAX_SCALE
    other = compose_centred(digits, chosen, scales)
    x, y = CENTRES[0].astype(int)
    half = CELL_SIZE // 2
    changed = (other.pixels != images.pixels) | (other.masks != images.masks)
    assert changed.any(axis=(1, 2)).all()
    changed[:, y - half : y + half, x - half : x + half] = False
    assert not changed.any()


def test_a_centred_digit_has_a_scale_that_fits_its_cell() -> None:
    digits = source_digits("test")
    for scale in (MIN_SCALE - 0.01, MAX_SCALE + 0.01, np.nan):
        with pytest.raises(DecExportError, match="scale must lie in"):
            compose_centred(digits, np.array([[0, 1, 2]]), np.array([[1.0, scale, 1.0]]))
