"""The manifest is a typed object in the library, and its file has not changed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import ValidationError

from dec_export.bundle.manifest import EngineVerdict, Manifest
from dec_export.bundle.store import Bundle
from dec_export.formats import Format
from dec_export.forms import Forms, Solver


def test_a_manifest_is_read_and_written_as_it_was(small_bundle: Bundle) -> None:
    text = (small_bundle.path / "manifest.json").read_text()
    manifest = Manifest.model_validate_json(text)
    assert manifest == small_bundle.manifest
    assert json.dumps(manifest.dump(), indent=2) + "\n" == text


@pytest.mark.parametrize(
    "entry",
    [
        {"gate": "not built", "reason": "there is no GPU"},
        {"gate": "pass", "runtime": "onnxruntime", "threads": None},
        {"gate": "fail"},
    ],
)
def test_a_verdict_is_flat_on_disk(entry: dict[str, Any]) -> None:
    verdict = EngineVerdict.model_validate(entry)
    assert (verdict.gate, verdict.reason) == (entry["gate"], entry.get("reason"))
    assert verdict.details == {key: value for key, value in entry.items() if key not in ("gate", "reason")}
    assert verdict.model_dump(mode="json") == entry
    assert EngineVerdict.model_validate(verdict) == verdict


@pytest.mark.parametrize("entry", [{"gate": "maybe"}, {"reason": "none"}, "pass"])
def test_what_is_no_verdict_is_refused(entry: object) -> None:
    with pytest.raises(ValidationError):
        EngineVerdict.model_validate(entry)


def test_the_forms_come_back_from_the_manifest(small_bundle: Bundle) -> None:
    assert small_bundle.manifest.forms == Forms()
    outputs = small_bundle.manifest.outputs
    more = [outputs[0].model_copy(update={"name": name}) for name in ("phi_x_0", "phi_y_0", "feature_map_2")]
    changes = {"solver": "loop", "precision": "bf16", "solver_precision": "fp16", "outputs": [*outputs, *more]}
    manifest = Manifest.model_validate({**dict(small_bundle.manifest), **changes})
    assert manifest.forms == Forms(Solver.LOOP, Format.BF16, Format.FP16, tap=2, expose_phi=True)


@pytest.mark.parametrize(("field", "value"), [("precision", "fp64"), ("solver_precision", "bf16"), ("solver", "x")])
def test_formats_that_no_model_has_are_refused(field: str, value: str, small_bundle: Bundle) -> None:
    with pytest.raises(ValidationError, match=field):
        Manifest.model_validate({**small_bundle.manifest.dump(), field: value})


def test_the_parts_are_frozen(small_bundle: Bundle) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_bundle.preprocessing.size = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        small_bundle.manifest.gate = "pass"  # type: ignore[misc]
