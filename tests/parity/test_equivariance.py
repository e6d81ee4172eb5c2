"""Equivariance errors are zero for maps that follow the image, and equal for an engine and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dec_export.data.images import ImageSet
from dec_export.engines.base import EngineDetails
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.engines.torch import TorchEngine
from dec_export.errors import RecipeError
from dec_export.formats import Format
from dec_export.forms import Forms, Solver
from dec_export.lowering.model import lower
from dec_export.names import mapped_place
from dec_export.onnx_export.tracing import export
from dec_export.parity.measures.distances import Distances
from dec_export.parity.measures.equivariance import (
    ACTIONS,
    ActionFacts,
    Equivariance,
    EquivarianceMeasure,
    EquivarianceReference,
    MapFacts,
    Terms,
    TermsOfMaps,
    compare,
    judge,
    measure,
    move,
)
from dec_export.parity.references import References, run_references
from dec_export.parity.run import run_parity
from dec_export.parity.runs import ReferenceOptions
from dec_export.reference.groups import Similarity
from dec_export.reference.model import DecModel, create_reference
from tests.conftest import SMALL_CANONICALIZER, photographs, randomised
from tests.helpers.models import DEPTH, SIZE
from tests.helpers.models import late_token_recipe as recipe

EXACT = [name for name, g in ACTIONS.items() if g.scale == 1]
TAP = 1


def pooled(images: NDArray[np.float32]) -> Mapping[int, Tensor]:
    """Return a map that follows the image, which holds the mean of every patch."""
    return {0: torch.nn.functional.avg_pool2d(torch.from_numpy(images).double(), 8)}


def compared(fp64: TermsOfMaps, in_precision: TermsOfMaps) -> EquivarianceReference:
    """Return the results of a reference with the given terms."""
    nothing = np.zeros((0,), np.float32)
    return EquivarianceReference(nothing, {}, fp64, in_precision, None, lambda _, features: features, tolerance=0.01)


def failures(layers: dict[str, dict[str, ActionFacts]]) -> list[str]:
    """Return the sentences of the gate about the maps of an engine."""
    facts = MapFacts(images=0, tap=None, actions=(), layers=layers)
    return Equivariance(equivariance=facts, judged=tuple(layers)).failures()


def placed(images: NDArray[np.float32]) -> Mapping[int, Tensor]:
    """Return a map that does not follow the image."""
    ramp = torch.arange(64.0).reshape(8, 8)
    return {0: ramp.expand(len(images), 3, 8, 8)}


def test_a_map_that_follows_the_image_has_no_error() -> None:
    images = photographs(64, 3)
    found = measure(pooled, images, move(images))[0]
    for name in EXACT:
        assert found[name].error.max() < 1e-7, name
        assert found[name].cosine.min() > 1 - 1e-12, name
        assert found[name].unaligned.min() > 0.05, name
    # Pooling and resampling commute but for interpolation, which on photographs is a lot.
    for name in set(ACTIONS) - set(EXACT):
        assert (found[name].error < 0.7 * found[name].unaligned).all(), name


def test_a_map_that_stays_where_it_is_has_no_unaligned_error() -> None:
    images = photographs(64, 2)
    for terms in measure(placed, images, move(images))[0].values():
        assert terms.unaligned.max() == 0
        assert terms.error.min() > 0.05


@given(st.sampled_from(EXACT), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_error_is_the_definition(name: str, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    here, there = (size * torch.randn(2, 5, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    g = ACTIONS[name]
    terms = compare(g, here, there)
    for i in range(2):
        aligned = g.act(here[i])
        expected = (there[i] - aligned).norm() / here[i].norm()
        cosines = [torch.dot(there[i, :, y, x], aligned[:, y, x]) for y in range(6) for x in range(6)]
        norms = [there[i, :, y, x].norm() * aligned[:, y, x].norm() for y in range(6) for x in range(6)]
        assert terms.error[i] == pytest.approx(float(expected), rel=1e-12)
        assert terms.unaligned[i] == pytest.approx(float((there[i] - here[i]).norm() / here[i].norm()), rel=1e-12)
        assert terms.cosine[i] == pytest.approx(
            float(np.mean([c / n for c, n in zip(cosines, norms, strict=True)])), abs=1e-12
        )


def test_what_lies_outside_a_shrunken_image_is_not_compared() -> None:
    g, here = Similarity(scale=0.5), torch.rand(1, 2, 8, 8, dtype=torch.float64)
    there = g.act(here)
    there[..., ~g.covers(8, 8)] = 99
    terms = compare(g, here, there)
    assert terms.error[0] == 0
    assert terms.cosine[0] == pytest.approx(1)


def test_the_error_is_a_share_of_the_whole_map() -> None:
    here = torch.rand(1, 2, 8, 8, dtype=torch.float64)
    here[..., 0, :] = 50  # where a map is shrunken from, though no compared patch lies there
    g = Similarity(scale=0.5)
    there = g.act(here) + 1
    used, size = int(g.covers(8, 8).sum()), here.square().sum() / 64
    assert compare(g, here, there).error[0] == pytest.approx(float((2 * used / used / size).sqrt()), rel=1e-12)


@pytest.mark.parametrize("side", [1, 2])
def test_a_map_that_leaves_nothing_to_compare_is_not_judged(side: int) -> None:
    def maps(images: NDArray[np.float32]) -> Mapping[int, Tensor]:
        return {0: torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images).double(), side)}

    images = photographs(64, 2)
    found = measure(maps, images, move(images))
    assert set(found[0]) == set(ACTIONS) - {"scaled by 0.8"}
    assert not failures(judge(compared(found, found), found))


def test_a_map_of_zeros_has_no_error_unless_it_changes() -> None:
    zero = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    assert compare(Similarity(1), zero, zero).error[0] == 0
    assert compare(Similarity(1), zero, zero + 1).error[0] == np.inf


def test_every_engine_sees_the_same_bits() -> None:
    images = photographs(64, 2)
    first, second = move(images), move(images)
    assert list(first) == list(ACTIONS)
    for name in ACTIONS:
        assert np.array_equal(first[name], second[name])
        assert first[name].dtype == np.float32
    assert np.array_equal(first["turned by 90"], np.rot90(images, axes=(2, 3)))


@given(st.floats(0.9, 1.1), st.floats(0, 0.02))
def test_an_engine_passes_within_the_tolerance_or_the_noise(factor: float, rounding: float) -> None:
    def terms(error: NDArray[Any], cosine: NDArray[Any] | None = None) -> TermsOfMaps:
        return {2: {"turned by 90": Terms(error, error, fp64 if cosine is None else cosine)}}

    fp64 = np.array([0.1, 0.2, 0.3])
    rounded = fp64 * (1 + rounding * np.array([1, -1, 1]))
    references = compared(terms(fp64), terms(rounded))
    judged = judge(references, terms(fp64 * factor))
    facts = judged["2"]["turned by 90"]
    assert facts.deviation == pytest.approx(abs(factor - 1), abs=1e-12)
    assert facts.bound == pytest.approx(max(0.01, 2 * rounding), abs=1e-12)
    assert bool(failures(judged)) == (facts.deviation > facts.bound)
    references = compared(terms(fp64), terms(fp64, rounded))
    judged = judge(references, terms(fp64, -fp64 * factor))
    assert judged["2"]["turned by 90"].cosine_deviation == pytest.approx(1 + factor, abs=1e-12)
    (failure,) = failures(judged)
    assert failure.startswith("the equivariance cosine of block 2, turned by 90, is -0.")
    references = compared(terms(fp64), terms(fp64, -rounded))
    assert not failures(judge(references, terms(fp64, -fp64 * factor)))
    references = compared(terms(fp64), terms(rounded))
    for bad in (np.nan, np.inf):
        assert failures(judge(references, terms(fp64 * bad)))


@pytest.fixture(scope="module")
def model() -> DecModel:
    return randomised(create_reference(recipe(TAP + 1, SMALL_CANONICALIZER)))


@pytest.fixture(scope="module")
def references(model: DecModel) -> References:
    images = ImageSet(tuple("abcd"), photographs(SIZE, 4), "photographs")
    return run_references(model, images, ReferenceOptions(Forms(tap=TAP), threads=1))


def test_the_references_are_of_every_block(model: DecModel, references: References) -> None:
    wanted = references.of(EquivarianceMeasure)
    assert references.outputs.fp64[f"feature_map_{TAP}"].shape == (4, 24, 8, 8)
    assert wanted is not None
    assert wanted.tap == TAP
    assert list(wanted.fp64) == list(range(DEPTH))
    array = references.inputs.images.array
    terms = wanted.fp64[TAP]["turned by 90"]
    turned = TorchEngine(model.double(), tap=TAP)(np.rot90(array, axes=(2, 3)).copy())[f"feature_map_{TAP}"]
    aligned = np.rot90(references.outputs.fp64[f"feature_map_{TAP}"], axes=(2, 3))
    model.float()
    expected = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(aligned, turned, strict=True)]
    assert terms.error == pytest.approx(expected, rel=1e-12)
    rounded = wanted.in_precision[TAP]["turned by 90"]
    assert 0 < np.abs(rounded.error / terms.error - 1).max() < 1e-2, "what float32 makes of it"


@pytest.mark.parametrize("solver", ["unroll", "loop", "plugin"])
def test_an_engine_s_numbers_are_the_reference_s(model: DecModel, references: References, solver: str) -> None:
    proto = export(lower(model), Forms(Solver(solver), tap=TAP))
    assert [output.name for output in proto.graph.output] == ["logits", f"feature_map_{TAP}"]
    report = run_parity(references, OnnxRuntimeEngine(proto, threads=1))
    assert report.passed, report.failures
    assert report[Distances].outputs[f"feature_map_{TAP}"].ratio <= 2
    found = report[Equivariance].equivariance
    assert found is not None
    assert found.tap == TAP
    assert list(found.layers) == [str(TAP)]
    assert list(found.layers[str(TAP)]) == list(ACTIONS)
    for facts in found.layers[str(TAP)].values():
        assert facts.reference > 0.01
        assert facts.deviation < 0.01


def test_inner_tensors_show_every_block(model: DecModel, references: References) -> None:
    proto = export(lower(model), Forms(tap=TAP))
    report = run_parity(references, OnnxRuntimeEngine(proto, inner=True, threads=1))
    found = report[Equivariance].equivariance
    assert found is not None
    assert list(found.layers) == [str(place) for place in range(DEPTH)]
    deviations = [facts.deviation for by_action in found.layers.values() for facts in by_action.values()]
    assert max(deviations) < 0.01


class Changed:
    """The float32 reference, whose map is changed for the moved images."""

    name, exposes_phi, smallest_batch = "changed", False, 1
    largest_batch: int | None = None

    def __init__(self, model: DecModel, references: References, change: Any) -> None:
        wanted = references.of(EquivarianceMeasure)
        assert wanted is not None
        self._engine, self._change = TorchEngine(model, tap=TAP), change
        self._moved = [one for images in wanted.moved.values() for one in images]

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        outputs = self._engine(image)
        if any(np.array_equal(image[0], one) for one in self._moved):
            outputs[f"feature_map_{TAP}"] = self._change(outputs[f"feature_map_{TAP}"])
        return outputs

    def describe(self) -> EngineDetails:
        return self._engine.describe()


def test_an_engine_whose_map_follows_less_fails_though_its_outputs_are_right(
    model: DecModel, references: References
) -> None:
    assert run_parity(references, Changed(model, references, lambda found: found)).passed
    report = run_parity(references, Changed(model, references, lambda found: found[..., ::-1].copy()))
    assert not report.passed
    assert all(failure.startswith("the equivariance ") for failure in report.failures)
    assert all(f" of block {TAP}, " in failure for failure in report.failures)
    report = run_parity(references, Changed(model, references, lambda found: found * np.nan))
    assert len(report.failures) == 2 * len(ACTIONS)
    layers = report.model_dump(mode="json")["equivariance"]["layers"]
    assert layers[str(TAP)]["turned by 90"]["engine"] is None


def test_a_map_that_is_not_returned_fails(model: DecModel, references: References) -> None:
    report = run_parity(references, TorchEngine(model))
    assert report.failures == (f"feature_map_{TAP} was not returned by the engine",)


@pytest.mark.parametrize("place", [DEPTH, -1])
def test_there_is_no_map_after_a_block_that_is_not_there(model: DecModel, place: int) -> None:
    with pytest.raises(RecipeError, match=rf"blocks or stages 0 to {DEPTH - 1} of .*, found {place}"):
        export(lower(model), Forms(tap=place))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits_give_a_float32_map(model: DecModel, precision: str, tmp_path: Path) -> None:
    proto = export(lower(model, precision), Forms(tap=TAP))
    engine = OnnxRuntimeEngine(proto, threads=1, bfloat16=precision == "bf16")
    found = engine(photographs(SIZE, 2))[f"feature_map_{TAP}"]
    assert found.dtype == np.float32
    images = ImageSet(("a", "b", "c", "d"), photographs(SIZE, 4), "photographs")
    options = ReferenceOptions(Forms(precision=Format(precision), tap=TAP), threads=1)
    references = run_references(model, images, options)
    report = run_parity(references, engine)
    assert not [failure for failure in report.failures if "equivariance" in failure]
    # The reference's own rounding is that of sixteen bits.
    wanted = references.of(EquivarianceMeasure)
    wide = run_references(model, images, ReferenceOptions(Forms(tap=TAP), threads=1)).of(EquivarianceMeasure)
    assert wanted is not None
    assert wide is not None
    narrow, single = (found.in_precision[DEPTH - 1]["turned by 90"] for found in (wanted, wide))
    # Under canonicalizers the solver's float32 is most of the noise in both, but not all of it.
    assert not np.array_equal(narrow.error, single.error)


def test_a_tampered_manifest_does_not_crash(model: DecModel) -> None:
    assert mapped_place(["logits", "feature_map_2"]) == 2
    assert mapped_place(["logits", "feature_map_" + "9" * 5000, "feature_map_٣", "feature_map_"]) is None
    with pytest.raises(RecipeError, match="found 99"):
        TorchEngine(model, tap=99)
