"""lscal_eq_error, consistency and eq_loss in a proof: against a direct computation, and with engines that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

import dec_export
from dec_export.data.digits import MAX_SCALE, MIN_SCALE
from dec_export.data.images import ImageSet, packaged_photographs
from dec_export.data.scale_pairs import LeftOut
from dec_export.engines.base import EngineDetails
from dec_export.engines.torch import TorchEngine
from dec_export.formats import Format
from dec_export.forms import Forms
from dec_export.parity.inputs import RescaledImages
from dec_export.parity.measures.consistency import Consistency
from dec_export.parity.measures.local_scales import LocalScales
from dec_export.parity.measures.scale_pairs import ScalePairs
from dec_export.parity.references import References, run_references
from dec_export.parity.report import Report
from dec_export.parity.rescaled import COMMON_SCALES, COPIES, rescaled_images
from dec_export.parity.run import run_parity
from dec_export.parity.runs import ReferenceOptions
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, preprocessing_of
from dec_export.reference.weights.checkpoint import load_reference
from dec_export.report import tables
from tests.conftest import photographs

Change = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
COUNT = 3
SCALES = ("0.7", "1", "1.3")


def trained(name: str) -> DecModel:
    return load_reference(Recipe.named(name), Path(str(resources.files("dec_export_models") / f"{name}.safetensors")))[
        0
    ]


def images_of(name: str) -> RescaledImages:
    recipe = Recipe.named(name)
    found = rescaled_images(recipe, preprocessing_of(recipe), COUNT)
    assert found is not None
    return found


def proof_of(name: str, forms: Forms | None = None) -> tuple[DecModel, References]:
    """The references on two photographs, and on a few digits that change their scales."""
    model, images = trained(name), ImageSet(("a", "b"), photographs(64, 2), "photographs")
    options = ReferenceOptions(forms or Forms(), threads=1, rescaled=images_of(name))
    return model, run_references(model, images, options)


class Changed:
    """The reference in float32, whose logits are changed by a function of the logits and of the images."""

    name, exposes_phi, smallest_batch = "changed", False, 1
    largest_batch: int | None = None

    def __init__(self, model: DecModel, change: Change | None = None) -> None:
        self._engine, self._change = TorchEngine(model.float(), threads=1), change

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        outputs = self._engine(image)
        return outputs if self._change is None else {**outputs, "logits": self._change(outputs["logits"], image)}

    def describe(self) -> EngineDetails:
        return self._engine.describe()


def text_of(report: Report) -> str:
    console = Console(width=250)
    with console.capture() as printed:
        console.print(tables.parity(report))
    return printed.get()


@pytest.fixture(scope="module")
def classified() -> tuple[DecModel, References]:
    return proof_of("digits")


def test_copies_differ_in_the_scales_of_the_objects_alone() -> None:
    images = images_of("digits")
    assert images.copies.shape == (COUNT, COPIES, 3, 64, 64)
    assert images.scales.shape == (COUNT, COPIES, 3)
    assert ((images.scales >= MIN_SCALE) & (images.scales <= MAX_SCALE)).all()
    assert len(np.unique(images.scales)) == images.scales.size, "every object has a scale of its own"
    assert (images.labels == images.labels[:, :1]).all()
    assert np.array_equal(images_of("digits").copies, images.copies), "the same images every time"
    segmented = images_of("digits_segmentation")
    assert np.array_equal(segmented.scales, np.broadcast_to(np.array(COMMON_SCALES)[:, None], (COUNT, 4, 3)))
    assert np.array_equal(segmented.copies[:, COMMON_SCALES.index(1.0)], segmented.originals)
    assert np.array_equal(segmented.originals, images.originals)


def test_photographs_have_no_copies() -> None:
    recipe = Recipe.named("deit_s")
    assert rescaled_images(recipe, preprocessing_of(recipe)) is None


def test_lscal_eq_error_is_that_of_each_image_and_copy(classified: tuple[DecModel, References]) -> None:
    model, references = classified
    report = run_parity(references, Changed(model))
    assert report.passed, report.failures
    facts = report[LocalScales].local_scales
    assert facts is not None
    images, engine = images_of("digits"), TorchEngine(trained("digits").double(), threads=1)
    errors = []
    for original, copies in zip(images.originals, images.copies, strict=True):
        here, *there = (np.exp(one - one.max()) for one in engine(np.stack([original, *copies]))["logits"])
        errors += [
            np.linalg.norm(one / one.sum() - here / here.sum()) * here.sum() / np.linalg.norm(here) for one in there
        ]
    assert facts.lscal_eq_error.reference == pytest.approx(np.mean(errors), rel=1e-9)
    assert facts.lscal_eq_error.engine == facts.lscal_eq_error.reference_fp32
    assert facts.lscal_eq_error.deviation < facts.lscal_eq_error.bound == 0.01
    assert (facts.images, facts.copies) == (COUNT, COPIES)
    assert (facts.smallest, facts.largest) == (images.scales.min(), images.scales.max())
    assert "lscal_eq_error" in text_of(report)
    assert not report[Consistency].measured


@pytest.mark.parametrize(("factor", "words"), [(0.5, "they differ by"), (np.nan, "it is not finite")])
def test_an_engine_that_is_wrong_on_these_images_alone_fails(
    classified: tuple[DecModel, References], factor: float, words: str
) -> None:
    model, references = classified
    proved = references.inputs.images.array, references.inputs.scaled

    def change(logits: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float32]:
        known = any(np.array_equal(images[0], one) for group in proved for one in group)
        return logits if known else logits * np.float32(factor)

    report = run_parity(references, Changed(model, change))
    (failure,) = report.failures
    assert failure.startswith("lscal_eq_error")
    assert words in failure


def test_sixteen_bits_are_judged_by_the_reference_in_sixteen_bits() -> None:
    model, references = proof_of("digits", Forms(precision=Format.FP16))
    facts = run_parity(references, Changed(model))[LocalScales].local_scales
    assert facts is not None
    assert facts.lscal_eq_error.tolerance == 0.05
    assert facts.lscal_eq_error.noise > 1e-5, "what half precision changes, and not what float32 changes"


def test_consistency_is_the_variance_of_each_images_score() -> None:
    model, references = proof_of("digits_segmentation")
    images = images_of("digits_segmentation")

    def change(logits: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.roll(logits, 1, axis=1)

    report, wrong = run_parity(references, Changed(model)), run_parity(references, Changed(model, change))
    facts, others = report[Consistency].consistency, wrong[Consistency].consistency
    assert facts is not None
    assert others is not None
    engine, scores = TorchEngine(trained("digits_segmentation"), threads=1), np.zeros((COUNT, 4))
    for i, copies in enumerate(images.copies):
        predicted = engine(copies)["logits"].argmax(axis=1)
        for k, (found, labels) in enumerate(zip(predicted, images.labels[i], strict=True)):
            present = set(np.unique(found)) | set(np.unique(labels))
            shares = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum() for c in present]
            scores[i, k] = np.mean(shares)
    assert facts.reference.variance == pytest.approx(np.var(scores, axis=1).mean(), rel=1e-12)
    assert facts.reference.scores == pytest.approx(scores.mean(axis=0), rel=1e-12)
    assert facts.engine == facts.reference == others.reference
    assert max(others.engine.scores) < min(facts.engine.scores), "another class is never right"
    assert (facts.score, facts.images, facts.scales) == ("mIoU", COUNT, COMMON_SCALES)
    assert report.passed, report.failures
    assert not any("mIoU" in failure for failure in wrong.failures), "a score is not gated"
    assert "variance of mIoU" in text_of(report)
    assert not report[LocalScales].measured


def write_scenes(folder: Path, scales: tuple[str, ...] = SCALES, scenes: int = 2) -> None:
    """Photographs, enlarged by the scale about their centre, in a folder for each class."""
    for path in packaged_photographs()[:scenes]:
        (folder / path.stem).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            photo = image.convert("RGB").resize((160, 160))
        for scale in scales:
            size = round(160 / float(scale))
            corner = (160 - size) // 2
            box = (corner, corner, corner + size, corner + size)
            photo.crop(box).resize((160, 160)).save(folder / path.stem / f"{path.stem}_scale_{scale}.png")


def proved(bundle: dec_export.Bundle, folder: Path, page: Path | None = None) -> Report:
    proof = dec_export.ProofOptions(images=folder, samples=4)
    return dec_export.prove(bundle, "onnxruntime", proof=proof, page=page, run=dec_export.RunOptions(threads=1))


def test_a_folder_of_scenes_is_measured_by_its_names(small_bundle: dec_export.Bundle, tmp_path: Path) -> None:
    write_scenes(tmp_path / "images")
    page = tmp_path / "page.html"
    report = proved(small_bundle, tmp_path / "images", page)
    facts = report[ScalePairs].scale_pairs
    assert report.passed, report.failures
    assert report.samples == 6, "scenes are whole"
    assert facts is not None
    assert facts.eq_loss is not None
    assert (facts.scenes, facts.scales, facts.left_out) == (2, (1.0, 0.7, 1.3), LeftOut())
    engine = TorchEngine(small_bundle.reference().double(), threads=1)
    preprocessing, distances = small_bundle.preprocessing, []
    for name in sorted(path.name for path in (tmp_path / "images").iterdir()):
        paths = [tmp_path / "images" / name / f"{name}_scale_{scale}.png" for scale in ("1", "0.7", "1.3")]
        logits = engine(np.stack([preprocessing.apply(Image.open(path)) for path in paths]))["logits"]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        distances.append([np.linalg.norm(one - shares[0]) for one in shares])
    assert facts.reference == pytest.approx(np.mean(distances, axis=0), rel=1e-6)
    assert facts.eq_loss.reference == pytest.approx(np.mean(distances), rel=1e-6)
    assert facts.engine == pytest.approx(facts.reference, rel=1e-2)
    assert report.model_dump(mode="json")["scale_pairs"]["scales"] == [1.0, 0.7, 1.3]
    assert "eq_loss" in text_of(report)
    html = page.read_text(encoding="utf-8")
    assert '<a href="#scale_pairs">Scenes at several scales</a>' in html
    assert "distance, scale 0.7" in html


def test_scenes_without_scale_1_are_named_and_not_measured(small_bundle: dec_export.Bundle, tmp_path: Path) -> None:
    write_scenes(tmp_path, ("0.7", "1.3"))
    page = tmp_path / "page.html"
    report = proved(small_bundle, tmp_path, page)
    facts = report[ScalePairs].scale_pairs
    assert report.passed, report.failures
    assert facts is not None
    assert facts.eq_loss is None
    assert facts.left_out == LeftOut(without_scale_1=2)
    assert "2 without an image of scale 1" in text_of(report)
    assert "2 without an image of scale 1" in page.read_text(encoding="utf-8")
    assert Report.model_validate(report.model_dump(mode="json"))[ScalePairs] == report[ScalePairs]
    assert not report[ScalePairs].figures()


def test_an_engine_whose_prediction_depends_on_the_scale_fails(small_model: DecModel) -> None:
    names = tuple(f"{scene}_scale_{scale}.png" for scene in "ab" for scale in ("1", "2"))
    images = ImageSet(names, photographs(160, 4), "photographs")
    references = run_references(small_model, images, ReferenceOptions(threads=1))

    def change(logits: NDArray[np.float32], given: NDArray[np.float32]) -> NDArray[np.float32]:
        second = [any(np.array_equal(one, images.array[i]) for i in (1, 3)) for one in given]
        return np.where(np.array(second)[:, None], logits[:, ::-1], logits)

    assert not [text for text in run_parity(references, Changed(small_model)).failures if "eq_loss" in text]
    failures = run_parity(references, Changed(small_model, change)).failures
    assert any(text.startswith("eq_loss is ") and "they differ by" in text for text in failures)


def test_proofs_that_are_older_can_be_read(small_bundle: dec_export.Bundle) -> None:
    proof = dec_export.ProofOptions(samples=1)
    document = dec_export.prove(small_bundle, "onnxruntime", proof=proof).model_dump(mode="json")
    new = ("local_scales", "consistency", "scale_pairs")
    assert [document[key] for key in new] == [None] * 3
    older = Report.model_validate({key: value for key, value in document.items() if key not in new})
    assert not any(older[kind].measured for kind in (LocalScales, Consistency, ScalePairs))
    assert not any(older[kind].rows() for kind in (LocalScales, Consistency, ScalePairs))
