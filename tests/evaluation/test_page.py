"""The page and the tables of an evaluation, by simulated results and by the digits' own bundles."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import click
import numpy as np
import pytest
from rich.console import Console, Group

from dec_export.bundle.store import Bundle
from dec_export.cli.app import main
from dec_export.engines.base import RunOptions
from dec_export.errors import DecExportError
from dec_export.evaluation import page
from dec_export.evaluation.conditions import Clean, Corruption, LocalScaling
from dec_export.evaluation.facts import Results
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.run import evaluate
from dec_export.evaluation.shown import Example
from dec_export.evaluation.tables import evaluation, gate_sentences
from dec_export.report.pictures import plain
from tests.evaluation.simulated import logits_for, plan_of, results_of, samples_of
from tests.helpers import datasets

HOSTILE = "<script>alert('x')</script>\"&.png"
LABELS = [0, 0, 1, 1, 2, 2] * 5
LOGITS = {
    "engine": logits_for([0, 0, 0, 0, 2, 2] * 5),
    "torch": logits_for(LABELS),
    "other (engine)": logits_for(LABELS),
}
CONDITIONS = (Clean(), LocalScaling(0.1), LocalScaling(0.2), Corruption("fog", 1), Corruption("fog", 3))
LIMITS = ("top1=1", "top1=30", "inve=0.1")
VOID = {"meta", "img", "image", "path", "link", "br"}


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def plan() -> Plan:
    groups = [{"scale": ["0.7", "1", "1.3"][i % 3]} for i in range(30)]
    samples = samples_of(LABELS, groups)
    samples[2] = replace(samples[2], name=HOSTILE)
    return plan_of(samples, list(LOGITS), CONDITIONS, LIMITS)


@pytest.fixture(scope="module")
def results(plan: Plan) -> Results:
    return results_of(plan, LOGITS, {f"broken {HOSTILE}": f"'{HOSTILE}' is damaged."})


def rendered(plan: Plan, results: Results, monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """Return the page with a grey picture for each image, because the images are nowhere."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    found = [Example(one.name, one.predictions, [plain("input", one.name, grey)]) for one in results.disagreements]
    monkeypatch.setattr(page, "examples", lambda *_: (found, []))
    return Parsed(page.render_page(plan, results, Path("data"), EvaluationOptions(max_drop=LIMITS)))


def test_the_page_escapes_names_and_asks_for_nothing(
    plan: Plan, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = rendered(plan, results, monkeypatch)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "b", "link", "iframe"})
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            address = attributes.get(name) or "data:"
            assert address.startswith(("data:", "#")), f"{tag} {address[:60]}"
    assert HOSTILE in parsed.text
    assert "<b>cow</b>" in parsed.text


def test_the_page_shows_all_parts(plan: Plan, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = rendered(plan, results, monkeypatch)
    anchors = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    assert anchors == {"metrics", "curves", "groups", "confusions", "images", "skipped", "repeat"}
    assert {(one["href"] or "")[1:] for tag, one in parsed.tags if tag == "a"} == anchors
    assert "✗ FAILED" in parsed.text
    for condition in plan.conditions:
        assert condition.name in parsed.text
    assert "mean corruption error of engine" in parsed.text
    # Top-1 and InvE by strength, top-1 by severity of fog, and top-1 by scale.
    alts = [attributes["alt"] or "" for tag, attributes in parsed.tags if tag == "img"]
    assert [alt.split(":")[0] for alt in alts] == [
        "top-1 accuracy against strength of local scaling",
        "InvE against strength of local scaling",
        "top-1 accuracy against strength of fog",
        "top-1 accuracy against scale",
    ]
    assert "engine 66.67% at 0, 66.67% at 1, 66.67% at 3" in alts[2]


def test_a_page_without_baseline_or_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(samples_of(LABELS), ["engine"])
    parsed = rendered(plan, results_of(plan, {"engine": LOGITS["engine"]}), monkeypatch)
    assert "No limit was set" in parsed.text
    assert parsed.open == []


def test_worse_is_marked_and_rounding_is_not(plan: Plan, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = [one for tag, one in rendered(plan, results, monkeypatch).tags if tag == "tr" and one.get("class")]
    assert marked
    nearly = {"engine": LOGITS["torch"] * np.float32(1 - 1e-6), "torch": LOGITS["torch"]}
    small = plan_of(samples_of(LABELS), ["engine", "torch"])
    found = results_of(small, nearly)
    assert found.conditions[0].differences["torch"]["nll"].words == "higher"
    assert not [one for tag, one in rendered(small, found, monkeypatch).tags if tag == "tr" and one.get("class")]


def printed(results: Results) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        found = evaluation(results)
        assert isinstance(found, Group)
        console.print(found)
    return capture.get()


def test_tables_are_whole_at_80_columns(results: Results) -> None:
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for words in ("-33.33 [-", "lower", "within noise", "fog 3", "mean corruption error", "66.67%"):
        assert words in text


def test_verdicts_are_sentences(results: Results) -> None:
    failed, undecided, *passed = gate_sentences(results)
    assert re.match(r"FAILED: top-1 accuracy, clean: the drop from torch to engine is 33\.33 percentage points", failed)
    assert re.match(r"CANNOT TELL: .* too few images to tell .* about [\d,]+ images would\.$", undecided)
    assert [sentence.split(":")[0] for sentence in passed] == ["PASSED", "PASSED"]
    assert "local scaling 0.1" in passed[0]


def test_a_limit_without_a_number_is_a_sentence() -> None:
    broken = LOGITS["engine"] * np.float32(np.nan)
    plan = plan_of(samples_of(LABELS), ["engine", "torch"], limits=["nll=1"])
    (sentence,) = gate_sentences(results_of(plan, {"engine": broken, "torch": LOGITS["torch"]}))
    assert sentence.endswith("the metric of engine or of torch is not a finite number.")


# These change neither numbers nor verdicts.
NOT_REPEATED = {"workers", "resume", "journal", "page", "force"}


def test_the_command_repeats_every_option_that_numbers_depend_on(plan: Plan) -> None:
    options = EvaluationOptions(
        engine="onnxruntime",
        baselines=("torch", "my other"),
        run=RunOptions(threads=2, cpu_fallback=True),
        data=DataOptions(Path("names.txt"), 255, "table"),
        limit=7,
        strengths=(0.1, 0.25),
        corruptions=("fog",),
        severities=(2,),
        seed=3,
        batch=5,
        strict=True,
        max_drop=("top1=1",),
        cluster="local",
    )
    usual = EvaluationOptions()
    names = {field.name for field in fields(options)} - NOT_REPEATED
    assert all(getattr(options, name) != getattr(usual, name) for name in names)
    words = shlex.split(page.command_of(plan, Path("my data"), options))
    assert words[:3] == ["dec-export", "evaluate", "bundle"]
    command = main.get_command(click.Context(main), "evaluate")
    assert command is not None
    parsed = command.make_context("evaluate", words[2:]).params
    for name in names - {"run", "data"}:
        assert parsed[name] == getattr(options, name), name
    assert parsed["data"] == Path("my data")
    assert (parsed["threads"], parsed["cpu_fallback"]) == (2, True)
    assert DataOptions(parsed["class_index"], parsed["ignored"], parsed["layout"]) == options.data


def test_the_page_of_masks_draws_classes(map_bundle: Bundle, tmp_path: Path) -> None:
    data = datasets.mask_folders(tmp_path / "data", datasets.digit_images(12))
    options = EvaluationOptions(
        engine="onnxruntime",
        run=RunOptions(threads=1),
        strengths=(0.25,),
        max_drop=("miou=5", "eqe@0.25=0.01"),
        page=tmp_path / "page.html",
        journal=tmp_path / "journal",
    )
    results = evaluate(map_bundle, data, options)
    assert results.gate is not None
    assert results.gate.verdict.value == "passed"
    assert len(results.classes) == map_bundle.recipe.backbone.num_classes
    used = [one.iou["onnxruntime"] for one in results.classes if one.iou["onnxruntime"] >= 0]
    assert results.conditions[0].metrics["onnxruntime"]["miou"] == pytest.approx(np.mean(used))
    assert results.conditions[0].agreement["torch"] > 0.99
    parsed = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    drawn = [attributes["aria-label"] or "" for tag, attributes in parsed.tags if tag == "svg"]
    assert [label.split(": ")[-1] for label in drawn[1:4]] == ["labels", "onnxruntime", "torch"]
    assert "Colours and numbers are the classes" in parsed.text
    with pytest.raises(DecExportError, match="--force"):
        evaluate(map_bundle, data, options)
