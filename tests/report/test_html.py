"""The HTML report is complete, correct, reproducible, safe to open, and readable on a phone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from dec_export import engines
from dec_export.bundle.manifest import Manifest
from dec_export.bundle.store import Bundle
from dec_export.data.images import ImageSet
from dec_export.engines.base import RunOptions
from dec_export.engines.torch import TorchEngine
from dec_export.parity.measures.base import Section
from dec_export.parity.measures.distances import Distances
from dec_export.parity.measures.labelled import SCALES, Labelled, LabelledFacts, Scores
from dec_export.parity.measures.trace import Trace
from dec_export.parity.presentation import Curve, Curves, Figure, Row
from dec_export.parity.references import References, run_references
from dec_export.parity.report import Report, Shown
from dec_export.parity.run import run_parity
from dec_export.parity.runs import ReferenceOptions
from dec_export.pipeline.options import ProofOptions
from dec_export.pipeline.prove import prove
from dec_export.recipe.model import HeadRecipe
from dec_export.reference.model import create_reference
from dec_export.report import figures
from dec_export.report.html import render_report
from tests.conftest import photographs, randomised

SECTIONS = ["distances", "errors", "solver", "trace", "images", "scales", "amplification", "provenance"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = "<script>alert(1)</script>.png"
Outputs = dict[str, Any]


class Page(HTMLParser):
    """The text, the addresses and the attributes of a page, of which every tag must be closed."""

    VOID = frozenset(("meta", "img", "br", "link", "image", "path"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def addresses(self) -> set[str]:
        named = [attributes.get(key) for _, attributes in self.tags for key in ("src", "href", "srcset", "data")]
        return {address for address in named if address is not None}


class Changed:
    """ONNX Runtime, with changed outputs."""

    exposes_phi = True
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(self, bundle: Bundle, name: str, change: Callable[[Outputs], Outputs]) -> None:
        self.name = name
        self._engine = engines.load(bundle, "onnxruntime", inner=True, options=engines.RunOptions(threads=1))
        self._change = change

    def __call__(self, image: Any) -> Outputs:
        return self._change(self._engine(image))

    def describe(self) -> engines.EngineDetails:
        return self._engine.describe()


def with_nan(outputs: Outputs) -> Outputs:
    return {name: value * np.nan if "1" in name or name == "logits" else value for name, value in outputs.items()}


@pytest.fixture(scope="module")
def manifest(small_bundle: Bundle) -> Manifest:
    return small_bundle.manifest


@pytest.fixture(scope="module")
def references(small_bundle: Bundle) -> References:
    names = ("a.png", HOSTILE, "\udcff.png")
    images = ImageSet(names, photographs(160, 3), "photographs")
    return run_references(small_bundle.reference(), images, ReferenceOptions(threads=1))


@pytest.fixture(scope="module")
def report(small_bundle: Bundle, references: References) -> Report:
    return run_parity(references, engines.load(small_bundle, "onnxruntime", inner=True, options=RunOptions(threads=1)))


@pytest.fixture(scope="module")
def text(manifest: Manifest, report: Report, references: References) -> str:
    return render_report(manifest, [report], references)


def changed_report(
    small_bundle: Bundle, references: References, name: str, change: Callable[[Outputs], Outputs]
) -> Report:
    with np.errstate(invalid="ignore"):
        return run_parity(references, Changed(small_bundle, name, change))


def test_the_page_has_every_section_and_says_what_passed(text: str, report: Report) -> None:
    page = Page(text)
    assert [attributes["id"] for attributes in page.all("section")] == SECTIONS
    assert {f"#{name}" for name in SECTIONS} == {address for address in page.addresses if address.startswith("#")}
    assert "✓ PASS" in page.text
    assert "onnxruntime: every output and every solved phi is within 2 times the noise floor" in page.text
    for name, entry in report[Distances].all.items():
        assert f"{name} {entry.ratio:.2f} {entry.typical_ratio:.2f} ✓ yes {entry.rel_l2:.2e}" in page.text
    assert "All weights are random" in page.text
    assert "canonicalizer 0 warps the input image; canonicalizer 1 warps the input of block or stage 0" in page.text


def test_the_page_is_one_file_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in text
    assert "@import" not in text
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    (policy,) = (meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_the_page_is_accessible(text: str) -> None:
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta")[1]["content"] == "width=device-width, initial-scale=1"
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(head.get("scope") for head in page.all("th"))


def test_each_image_is_drawn_with_its_grids_and_warps(text: str, references: References) -> None:
    page = Page(text)
    assert len(page.all("svg")) == 3 * 6
    paths = {path["d"] for path in page.all("path")}
    assert len(paths) == 3 * 2
    numbers = np.array([float(number) for path in paths for number in re.findall(r"[\d.]+", str(path))])
    assert numbers.min() == 0.5, "the grid spans the image"
    assert numbers.max() == 159.5
    logits = references.outputs.fp64["logits"][0]
    probability = np.exp(logits.max()) / np.exp(logits).sum()
    assert f"input: class {logits.argmax()} ({probability:.1%})" in page.text


def test_names_from_outside_are_escaped(text: str) -> None:
    assert "<script" not in text
    assert HOSTILE in Page(text).text
    assert "?.png" in text.encode("utf-8").decode(), "a name that is no text"


def test_texts_of_engines_are_escaped(manifest: Manifest, report: Report, references: References) -> None:
    engines = {
        "tensorrt": {"gate": "not built", "reason": "<img src=x onerror=alert(1)> & more"},
        "tensorrt-rtx": {"gate": "pass", "runtime": "<i>", "version": "1"},
    }
    dumped = manifest.model_dump(mode="json")
    hostile = Manifest.model_validate_json(json.dumps({**dumped, "engines": dumped["engines"] | engines}))
    page = Page(render_report(hostile, [report], references))
    assert "tensorrt not built <img src=x onerror=alert(1)> & more" in page.text
    assert "tensorrt-rtx pass when the bundle was built <i> 1" in page.text


def test_the_same_report_is_the_same_page(
    text: str, manifest: Manifest, report: Report, references: References
) -> None:
    assert render_report(manifest, [report], references) == text
    assert len(text.encode()) < 2_500_000


def test_a_failing_engine_says_where_it_leaves_the_reference(
    small_bundle: Bundle, manifest: Manifest, report: Report, references: References
) -> None:
    scaled = changed_report(small_bundle, references, "scaled", lambda o: {**o, "logits": o["logits"] * 1.01})
    broken = changed_report(small_bundle, references, "broken", with_nan)
    page = Page(render_report(manifest, [report, scaled, broken], references))
    assert "✗ FAIL scaled leaves the reference at the head; broken leaves the reference at canonicalizer 0" in page.text
    for failing in (scaled, broken):
        for failure in failing.failures:
            assert failure in page.text
    assert "logits not finite not finite ✗ no" in page.text
    assert "InvE of the engine not finite" in page.text


def test_an_engine_that_shows_nothing_but_outputs(
    small_bundle: Bundle, manifest: Manifest, references: References
) -> None:
    outputs = changed_report(
        small_bundle, references, "compiled", lambda o: {k: v for k, v in o.items() if k == "logits" or k[:3] == "phi"}
    )
    page = Page(render_report(manifest, [outputs], references))
    assert outputs.passed
    assert "compiled does not show its iterates" in page.text


def test_a_missing_phi_is_a_failure_without_a_place(
    small_bundle: Bundle, manifest: Manifest, references: References
) -> None:
    lost = changed_report(small_bundle, references, "lost", lambda o: {k: v for k, v in o.items() if k != "phi_x_1"})
    page = Page(render_report(manifest, [lost], references))
    assert "lost breaks the gate's rule, though no tensor on its way leaves the noise floor." in page.text
    assert "phi_x_1 was not returned by the engine" in page.text


def with_section(report: Report, section: Section) -> Report:
    """Return the report with a section that replaces the one of its name, or is added at the end."""
    others = tuple(found for found in report.sections if found.name != section.name)
    return report.model_copy(update={"sections": (*others, section)})


def nothing_finite(value: Any) -> Any:
    """Return a report in which every measurement is NaN."""
    if isinstance(value, dict):
        return {key: nothing_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nothing_finite(item) for item in value]
    return None if isinstance(value, float) else value


def test_a_report_without_a_finite_number(manifest: Manifest, report: Report, references: References) -> None:
    whole = report.model_dump(mode="json")
    content = nothing_finite(whole)
    content["errors"] = {**whole["errors"], **dict.fromkeys(("engine", "reference_fp32"), [0] * 56)}
    content["gate"] = "fail"
    numbers = [1.0] * len(SCALES)
    facts = {"plain": [None] * len(SCALES), "locally_scaled": numbers, "invariance": numbers}
    content["labelled"] = {
        "score": "accuracy",
        "metric": "InvE",
        "images_per_scale": 5,
        "scales": list(SCALES),
        "reference": facts,
        "engine": facts,
    }
    lost = {name: value * np.nan for name, value in references.outputs.fp64.items()}
    outputs = dataclasses.replace(references.outputs, fp64=lost)
    logits = {name: value * np.nan for name, value in references.scaled.fp64.items()}
    scaled = dataclasses.replace(references.scaled, fp64=logits)
    read = Report.model_validate(content)
    with np.errstate(invalid="ignore"):
        page = Page(
            render_report(
                manifest,
                [read.model_copy(update={"shown": report.shown}), read],
                dataclasses.replace(references, outputs=outputs, scaled=scaled),
            )
        )
    assert "No logit differs from float64 by a finite amount." in page.text
    assert "The references show no iterates." in page.text
    assert "float64 reference not finite not finite not finite" in page.text
    assert "accuracy, onnxruntime not finite" in page.text


def test_scores_at_every_scale(manifest: Manifest, report: Report, references: References) -> None:
    assert (
        "Scores were not measured, because these images have no labels."
        in Page(render_report(manifest, [report], references)).text
    )
    scores = Scores(*([0.25] * len(SCALES) for _ in range(3)))
    facts = LabelledFacts(
        score="accuracy", metric="InvE", images_per_scale=5, scales=SCALES, reference=scores, engine=scores
    )
    page = Page(render_report(manifest, [with_section(report, Labelled(labelled=facts))], references))
    assert "scale 0.4 0.5 0.6 0.8 1.0 1.2 1.4 1.7 2.0 accuracy, reference 25.0% 25.0%" in page.text
    assert "InvE, onnxruntime 0.2500" in page.text


class Colour(Section):
    """The section of a new measure."""

    name: ClassVar[str] = "colour"
    heading: ClassVar[str | None] = "Colour"

    colour: float

    def rows(self) -> list[Row]:
        return [Row("share of blue", f"{self.colour:.0%}")]

    def figures(self) -> list[Figure]:
        blue = Curve("engine", ", blue", (0.0, 1.0), (self.colour, self.colour))
        return [Curves("colour", "A line of blue", (blue,), x_label="place", y_label="share")]


def test_a_section_of_a_new_measure_has_a_part_without_a_template(
    manifest: Manifest, report: Report, references: References
) -> None:
    page = Page(render_report(manifest, [with_section(report, Colour(colour=0.5))], references))
    assert [attributes["id"] for attributes in page.all("section")] == [*SECTIONS[:-1], "colour", SECTIONS[-1]]
    assert "onnxruntime share of blue 50%" in page.text
    assert "A line of blue" in {image["alt"] for image in page.all("img")}


def test_segmentation_is_drawn_as_maps_with_a_legend(small_bundle: Bundle, manifest: Manifest) -> None:
    digits = small_bundle.recipe.evaluation.model_copy(update={"data": "digits"})
    recipe = small_bundle.recipe.model_copy(
        update={
            "task": "segmentation",
            "head": HeadRecipe(kind="linear"),
            "evaluation": digits,
            "augment_layer_id": (0, 1),
            "unaugment_layer_id": (0, 1),
            "backbone": small_bundle.recipe.backbone.model_copy(update={"num_classes": 11}),
        }
    )
    model = randomised(create_reference(recipe), strength=0.3)
    images = ImageSet(("a.png",), photographs(160, 1), "photographs")
    references = run_references(model, images, ReferenceOptions(threads=1))
    report = run_parity(references, TorchEngine(model, inner=True, threads=1))
    manifest = manifest.model_copy(update={"recipe": recipe})
    assert report.shown is not None
    shown = Shown(report.shown.logits * np.nan, report.shown.logits_scaled * np.nan)
    lost = report.model_copy(update={"engine": "lost", "shown": shown})
    page = Page(render_report(manifest, [report, lost], references))
    assert len(page.all("svg")) == 6 + 2 * 3
    assert "lost, input: not finite" in page.text
    seen = np.unique(np.stack([references.outputs.fp64["logits"], references.scaled_logits]).argmax(axis=2))
    assert len(seen) > 1
    assert all(f"class {number}, " in page.text for number in seen)
    assert ("class 10, background, not coloured" in page.text) == (10 in seen)
    assert re.search(r"torch same class in (100\.00|9\d\.\d\d)%", page.text)
    assert page.all("text"), "classes bear their numbers"
    assert "top-1 agreement of pixels" in page.text


def test_plots_touch_no_settings_of_matplotlib(report: Report) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    owned = [figures.Owned("onnxruntime", 0, figure) for figure in report[Trace].figures()]
    svg = figures.draw(owned).svg
    assert dict(mpl.rcParams) == before
    assert "<dc:date>" not in svg
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "other"}):
        assert figures.draw(owned).svg == svg


def test_a_bundle_s_own_page_and_one_engine_s(small_bundle: Bundle, tmp_path: Path) -> None:
    page = Page((small_bundle.path / "parity.html").read_text(encoding="utf-8"))
    assert "✓ PASS" in page.text
    assert small_bundle.manifest.files["parity.json"].sha256 in page.text
    target = tmp_path / "torch.html"
    prove(small_bundle, "torch", run=RunOptions(threads=1), proof=ProofOptions(samples=1), page=target)
    assert "onnxruntime pass when the bundle was built" in Page(target.read_text(encoding="utf-8")).text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on PATH to open the page with")
def test_nothing_is_wider_than_a_phone(text: str, tmp_path: Path) -> None:
    """The page is shown in a frame of 360 pixels, because a browser's window cannot be that narrow."""
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        "<iframe src='report.html' width='360' height='800' style='border:0'></iframe><p id='found'></p><script>"
        "onload = () => { const page = document.querySelector('iframe').contentDocument;"
        " const broken = [...page.images].filter(image => !image.naturalWidth).length;"
        " document.querySelector('#found').textContent ="
        " `${page.documentElement.scrollWidth <= page.documentElement.clientWidth}, ${broken} broken`; }</script>"
    )
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"),
        (tmp_path / "frame.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert '<p id="found">true, 0 broken</p>' in done.stdout, done.stdout[-500:] + done.stderr[-500:]
