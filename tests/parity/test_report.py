"""A report is typed data whose dump is the JSON that programs read, and old files load into it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dec_export.bundle.store import Bundle
from dec_export.errors import BundleError
from dec_export.parity.measures.agreement import Agreement
from dec_export.parity.measures.base import Header, Section
from dec_export.parity.measures.distances import Distances
from dec_export.parity.measures.labelled import Labelled
from dec_export.parity.measures.registry import MEASURES
from dec_export.parity.report import Report, Summary, load_summary, summarise, summary_of
from tests.golden.store import BUNDLE_V1

PARITY = BUNDLE_V1 / "parity.json"


@pytest.fixture
def document() -> dict[str, Any]:
    """Return one engine's report in the form of the first version of the schema."""
    summary: dict[str, Any] = json.loads(PARITY.read_text(encoding="utf-8"))
    return summary["engines"]["onnxruntime"]


def test_a_file_of_the_first_schema_loads_and_dumps_to_itself() -> None:
    """Measures that are newer than the file are null in the dump, and everything else is as it was."""
    text = PARITY.read_text(encoding="utf-8")
    expected = json.loads(text)
    for report in expected["engines"].values():
        report |= {"local_scales": None, "consistency": None, "scale_pairs": None}
    for summary in (load_summary(PARITY), Summary.model_validate_json(text)):
        assert summary.model_dump(mode="json") == expected
        assert summary.engines["onnxruntime"].passed
    found = summary_of(Bundle.load(BUNDLE_V1))
    assert found == load_summary(PARITY)
    assert summarise(list(load_summary(PARITY).engines.values())) == found


def test_every_key_belongs_to_one_section() -> None:
    keys = list(Header.model_fields)
    for measure in MEASURES:
        keys += [name for name, field in measure.section.model_fields.items() if not field.exclude]
    assert len(keys) == len(set(keys))
    names = [measure.section.name for measure in MEASURES]
    assert len(names) == len(set(names))


def test_what_is_not_finite_is_null(document: dict[str, Any]) -> None:
    document["outputs"]["logits"]["ratio"] = math.inf
    document["top1_agreement"] = math.nan
    report = Report.model_validate(document)
    assert report[Distances].outputs["logits"].ratio == math.inf
    written = report.model_dump(mode="json")
    assert written["outputs"]["logits"]["ratio"] is None
    assert written["top1_agreement"] is None
    assert math.isnan(Report.model_validate(written)[Agreement].top1_agreement)


def test_names_that_are_no_text_are_kept(document: dict[str, Any], tmp_path: Path) -> None:
    document["images"]["names"] = ["\udcff.png"]
    summary = summarise([Report.model_validate(document)])
    path = tmp_path / "parity.json"
    path.write_text(json.dumps(summary.model_dump(mode="json")), encoding="utf-8")
    assert load_summary(path).engines["onnxruntime"].images.names == ("\udcff.png",)


def test_a_report_without_its_outputs_is_none(document: dict[str, Any]) -> None:
    del document["outputs"]
    with pytest.raises(ValidationError, match="outputs"):
        Report.model_validate(document)


@pytest.mark.parametrize("content", ["{", "[]", '{"gate": "pass"}', '{"gate": "maybe", "engines": {}}'])
def test_a_damaged_file_is_an_error_of_the_bundle(content: str, tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match="not a proof that this version can read"):
        load_summary(path)


def test_a_section_that_is_not_there_is_named() -> None:
    class Colour(Section):
        name = "colour"

    report = load_summary(PARITY).engines["onnxruntime"]
    assert report[Labelled].labelled is None
    with pytest.raises(KeyError, match="colour"):
        _ = report[Colour]
