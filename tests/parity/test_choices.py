"""A hard choice near a tie: either candidate passes the gate, and a clearly wrong one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dec_export.data.images import ImageSet
from dec_export.engines.base import EngineDetails
from dec_export.engines.torch import TorchEngine
from dec_export.parity.choices import NO_CANDIDATE, Choices, compare_scores
from dec_export.parity.measures.amplification import Amplification
from dec_export.parity.measures.choice import Choice
from dec_export.parity.measures.residuals import Residuals
from dec_export.parity.references import References, run_references
from dec_export.parity.report import Report
from dec_export.parity.run import run_parity
from dec_export.reference.discrete import DiscreteCanonicalizer
from dec_export.reference.model import DecModel, create_reference
from dec_export.reference.warp import Phi
from tests.conftest import photographs, randomised
from tests.helpers.discrete import discrete_recipe

Change = Callable[[torch.Tensor], torch.Tensor]


# The candidates of limit 2 are numbered x outer, y inner: candidates c and c ^ 2 have other steps along x and are tied.
def first_of_the_tie(choice: torch.Tensor) -> torch.Tensor:
    return choice & 1


def second_of_the_tie(choice: torch.Tensor) -> torch.Tensor:
    return choice | 2


def other_steps_along_y(choice: torch.Tensor) -> torch.Tensor:
    return choice ^ 1


def tied_model() -> DecModel:
    """Return a model whose scores read the red channel alone."""
    model = randomised(create_reference(discrete_recipe(limit=2)), strength=0.1)
    first = model.DEM.conv_layers[0]  # type: ignore[index]
    with torch.no_grad():
        first.weight[:, 1:] = 0
        first.bias.zero_()
    return model


def tied_images() -> NDArray[np.float32]:
    """Return photographs whose red is zero below the middle, where alone candidates of other steps along x differ."""
    images = photographs(160, 3).copy()
    images[:, 0, 80:] = 0
    return images


class Steered:
    """The float32 reference, whose choice of each image is changed by a function."""

    name = "steered"
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(self, model: DecModel, change: Change, *, exposes_phi: bool) -> None:
        self._engine, self.exposes_phi = TorchEngine(model, expose_phi=True), exposes_phi
        self._model, self._change = model, change

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        canonicalizer = self._model.DEM
        assert isinstance(canonicalizer, DiscreteCanonicalizer)
        with torch.inference_mode():
            chosen = self._change(canonicalizer.scores(torch.from_numpy(image)).argmax(dim=1))
        outputs = self._engine.at(image, [Phi(*(axis[chosen] for axis in canonicalizer.candidates))])
        return {name: value for name, value in outputs.items() if self.exposes_phi or name == "logits"}

    def describe(self) -> EngineDetails:
        return self._engine.describe()


@pytest.fixture(scope="module")
def model() -> DecModel:
    return tied_model()


@pytest.fixture(scope="module")
def references(model: DecModel) -> References:
    return run_references(model, ImageSet(tuple("abc"), tied_images(), "photographs"))


def judged(model: DecModel, references: References, change: Change, *, exposes_phi: bool) -> Report:
    return run_parity(references, Steered(model, change, exposes_phi=exposes_phi))


def test_the_tie_is_one(model: DecModel, references: References) -> None:
    """Two scores are equal up to 1e-9 and their warps give different logits; the other scores are clearly lower."""
    for found in (references.outputs, references.scaled):
        choices = found.choices
        assert choices is not None
        scores = choices.scores
        np.testing.assert_allclose(scores[:, :2], scores[:, 2:], atol=1e-9 * np.abs(scores).max())
        assert list(choices.near_ties) == [0, 1, 2]
        assert [other.candidate for other in found.alternatives] == list(choices.best ^ 2)
        assert np.sort(choices.gaps, axis=1)[:, 2].min() > 100 * choices.noise
    here, there = (
        Steered(model, change, exposes_phi=False)(tied_images())["logits"]
        for change in (first_of_the_tie, second_of_the_tie)
    )
    assert np.linalg.norm(here - there) > 1e-4 * np.linalg.norm(here)


@pytest.mark.parametrize("exposes_phi", [True, False])
def test_either_candidate_of_a_tie_passes(model: DecModel, references: References, exposes_phi: bool) -> None:
    moved = []
    for change in (first_of_the_tie, second_of_the_tie):
        report = judged(model, references, change, exposes_phi=exposes_phi)
        assert report.passed, report.failures
        facts = report[Choice].choice
        assert facts is not None
        assert (facts.near_ties, facts.near_ties_scaled, facts.candidates) == (3, 3, 4)
        moved.append(facts.judged_elsewhere)
        assert "3 images, 3 locally scaled copies" in report[Choice].rows()[0].text
        assert report.model_dump(mode="json")["choice"]["near_ties"] == 3
    assert sum(moved) == 6, "each image and copy is judged elsewhere for one of the two"


@pytest.mark.parametrize("exposes_phi", [True, False])
def test_a_clearly_wrong_candidate_fails(model: DecModel, references: References, exposes_phi: bool) -> None:
    report = judged(model, references, other_steps_along_y, exposes_phi=exposes_phi)
    assert not report.passed
    assert any(sentence.startswith("logits is") for sentence in report.failures)
    assert exposes_phi == any("a is warped by candidate" in sentence for sentence in report.failures)


def test_a_phi_that_is_no_candidate_fails(model: DecModel, references: References) -> None:
    class Half(Steered):
        def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
            return {k: v if k == "logits" else v / 2 for k, v in super().__call__(image).items()}

    report = run_parity(references, Half(model, first_of_the_tie, exposes_phi=True))
    assert any("none of the candidates" in sentence for sentence in report.failures)


def test_measures_of_a_solver_are_absent(model: DecModel, references: References) -> None:
    report = judged(model, references, first_of_the_tie, exposes_phi=True)
    assert report[Residuals].solver == {}
    assert not report[Residuals].hidden
    assert report[Amplification].amplification == {}
    assert not report[Amplification].measured


def choices_of(scores: Any, noise: float) -> Choices:
    return Choices(np.array(scores, dtype=np.float64), noise, np.zeros((len(scores[0]), 2, 3, 2)))


def test_only_gaps_within_the_noise_are_admissible() -> None:
    found = choices_of([[1.0, 1.0 - 1.9e-6, 1.0 - 2.1e-6], [0.0, 1.0, 0.5]], 1e-6)
    assert found.admissible.tolist() == [[True, True, False], [False, True, False]]
    assert found.alternatives() == [(0, 1)]
    assert list(found.near_ties) == [0]
    assert found.smallest_gap == pytest.approx(1.9e-6)


@given(st.floats(-10, 10), st.integers(0, 2**32 - 1))
def test_a_shift_of_all_scores_is_no_noise(shift: float, seed: int) -> None:
    """The choice depends on differences of scores alone."""
    scores = np.random.default_rng(seed).normal(size=(3, 5)) + 100
    candidates = np.zeros((5, 2, 3, 2))
    shifted = compare_scores(scores, scores + shift, candidates)
    rounding = 2.0**-24 * np.abs(scores).max()
    assert shifted.noise == pytest.approx(rounding, rel=1e-6)
    moved = scores.copy()
    moved[1, 2] += 0.1
    assert compare_scores(scores, moved, candidates).noise == pytest.approx(0.1)


def test_scores_that_are_not_finite_have_no_ties() -> None:
    scores = np.array([[np.nan] * 3, [0.0, 1.0, 0.5]])
    found = compare_scores(scores, scores, np.zeros((3, 2, 3, 2)))
    assert np.isfinite(found.noise)
    assert not len(found.near_ties)


def test_phis_are_recognised_and_others_are_not() -> None:
    candidates = np.arange(3.0)[:, None, None, None] * np.ones((3, 2, 3, 2))
    found = Choices(np.zeros((4, 3)), 0.0, candidates)
    steps = np.array([2.0, 0.0, 0.5, np.nan])[:, None, None] * np.ones((4, 3, 2))
    recognised = found.recognised({"phi_x_0": steps, "phi_y_0": steps})
    assert recognised is not None
    assert list(recognised) == [2, 0, NO_CANDIDATE, NO_CANDIDATE]
    assert found.recognised({"logits": steps}) is None
