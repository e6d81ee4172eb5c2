"""A bundle of the first version of the schema can still be loaded, proved, and written as a model repository."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import onnx
from onnx import numpy_helper

from tests.golden.builds import RUN
from tests.golden.command import dec_export, succeed
from tests.golden.normalise import normalise_json, normalise_text
from tests.golden.store import BUNDLE_V1, Golden


def test_it_loads(golden: Golden) -> None:
    facts = succeed("inspect", BUNDLE_V1, "--json").facts
    # Its graph is the committed file, so no version of the exporter changes what is counted in it.
    golden.check_json("json/inspect_bundle_v1.json", normalise_json(facts, BUNDLE_V1.parent))


def test_it_proves(golden: Golden) -> None:
    report = succeed("parity", BUNDLE_V1, *RUN, "--json").facts
    assert report["gate"] == "pass"
    assert report["failures"] == []
    golden.check_json("json/parity_bundle_v1.json", normalise_json(report, BUNDLE_V1.parent))


def test_its_inner_tensors_are_found() -> None:
    """The file holds the names of inner tensors."""
    report = succeed("parity", BUNDLE_V1, *RUN, "--trace", "--layers", "--json").facts
    assert report["trace"]["missing"] == 0
    assert list(report["equivariance"]["layers"]) == ["0", "1"]


def test_it_is_served(tmp_path: Path) -> None:
    facts = succeed("triton", BUNDLE_V1, "--repository", tmp_path / "models", "--device", "cpu", "--json").facts
    assert facts["models"] == dict.fromkeys(("tiny", "tiny_pre", "tiny_post", "tiny_classify"), 1)
    copied = tmp_path / "models" / "tiny" / "1" / "model.onnx"
    assert copied.read_bytes() == (BUNDLE_V1 / "model.onnx").read_bytes()


def test_a_failed_gate_ends_with_exit_code_1(golden: Golden, tmp_path: Path) -> None:
    """The bundle has correct hashes, but its model does not have the weights that it names."""
    wrong = Path(shutil.copytree(BUNDLE_V1, tmp_path / "wrong"))
    proto = onnx.load(wrong / "model.onnx")
    largest = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * 1.2, largest.name))
    onnx.save(proto, wrong / "model.onnx")
    manifest = json.loads((wrong / "manifest.json").read_text())
    content = (wrong / "model.onnx").read_bytes()
    manifest["files"]["model.onnx"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (wrong / "manifest.json").write_text(json.dumps(manifest))

    outcome = dec_export("parity", wrong, *RUN, "--trace", "--json")
    assert outcome.code == 1
    report = outcome.facts
    assert report["gate"] == "fail"
    failures = [normalise_text(failure, tmp_path) for failure in report.pop("failures")]
    golden.check_json("json/parity_failed.json", normalise_json(report, tmp_path))
    golden.check_json("texts/failures.json", failures)
