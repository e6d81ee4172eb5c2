"""The registry has complete specifications, loads no library to list engines, and reports a broken library."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from dec_export.bundle.store import Bundle
from dec_export.engines import registry
from dec_export.engines.registry import all_availabilities, availability, builder_of, engine_names, engine_spec
from dec_export.engines.spec import Availability, EngineSpec
from dec_export.errors import EngineError
from dec_export.gpu import Gpu

SPECS = registry.engine_specs()


def test_names_are_unique_and_the_best_engine_comes_first() -> None:
    assert len(set(engine_names())) == len(SPECS)
    preferences = [spec.preference for spec in SPECS]
    assert preferences == sorted(set(preferences)), "two engines with one preference would be in no order"


def test_auto_always_finds_an_engine() -> None:
    """The last engine of the list needs neither a GPU nor a build, so every machine has an engine for every bundle."""
    last = [spec for spec in SPECS if spec.automatic][-1]
    assert not last.needs_gpu
    assert last.build is None


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_engine_has_what_help_and_doctor_show(spec: EngineSpec) -> None:
    assert spec.summary
    assert not spec.summary.endswith(".")
    assert isinstance(availability(spec.name, None), Availability)
    assert spec.needs_gpu or not spec.falls_back_to_cpu, "only a GPU engine has something to give way from"
    assert spec.build is None or spec.load_onnx is not None


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_broken_library_is_named_with_its_own_package(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Gpu | None) -> Availability:
        raise ImportError("a library is missing")

    monkeypatch.setattr(registry, "engine_specs", lambda: (dataclasses.replace(spec, probe=broken),))
    monkeypatch.setattr(registry, "distribution_of", lambda package: f"{package}-of-this-machine")
    found = all_availabilities()[spec.name]
    assert not found.can_build
    assert not found.can_run
    assert found.detail == (
        f"does not load (a library is missing): pip install --force-reinstall {spec.package}-of-this-machine"
    )


def test_an_engine_whose_library_is_missing_says_what_doctor_says(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"'onnxruntime' cannot be used: does not load .*: pip install"):
        registry.load(small_bundle, "onnxruntime")


@pytest.mark.parametrize("find", [engine_spec, builder_of, lambda name: availability(name, None)])
def test_an_unknown_name_becomes_no_engine(find) -> None:
    with pytest.raises(EngineError, match=r"Unknown engine 'onnx-runtime'\. Did you mean 'onnxruntime'"):
        find("onnx-runtime")


def test_what_runs_a_bundle_as_it_is_has_no_builder() -> None:
    with pytest.raises(EngineError, match="needs no building"):
        builder_of("onnxruntime")
    assert builder_of("tensorrt").keeps_timings
    assert not builder_of("tensorrt-rtx").keeps_timings


def test_listing_engines_and_baselines_loads_no_runtime() -> None:
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pydantic")
    code = (
        "import sys\nfrom dec_export.engines.registry import engine_specs\n"
        "from dec_export.bench.subjects import BASELINES\nassert engine_specs() and BASELINES\n"
        f"print(*sorted(set({heavy}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
