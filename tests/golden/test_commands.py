"""The output of every command as JSON and as text, and the files of a build, are those of the golden files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.golden.builds import PRINTED_AS_JSON, PRINTED_AS_TEXT, PROVEN, RUN, Builds
from tests.golden.command import succeed
from tests.golden.normalise import normalise_json, normalise_text, sentences_of, structure_of
from tests.golden.origin import exporter
from tests.golden.store import RECIPES, Golden

# These facts of `inspect` are those of the written graph, which other versions of the exporter write differently.
OF_THE_GRAPH = ("nodes", "operators", "functions", "dec_operators", "initializers", "largest_tensors")


@pytest.mark.parametrize("name", PRINTED_AS_JSON)
def test_build_as_json(name: str, builds: Builds, golden: Golden) -> None:
    facts = normalise_json(builds[name].outcome.facts, builds.folder)
    golden.check_json(f"json/build_{name}.json", facts)


@pytest.mark.parametrize("name", PRINTED_AS_TEXT)
def test_build_as_text(name: str, builds: Builds, golden: Golden) -> None:
    golden.check_text(f"texts/build_{name}.txt", normalise_text(builds[name].outcome.out, builds.folder))


@pytest.mark.parametrize("name", ["tiny", "maps", "alone", "loop"])
def test_what_a_build_says_while_it_runs(name: str, builds: Builds, golden: Golden) -> None:
    lines = builds[name].outcome.err.splitlines()
    text = "".join(normalise_text(line, builds.folder) for line in lines)
    golden.check_text(f"texts/build_{name}_stderr.txt", text)


@pytest.mark.parametrize("name", [*PROVEN, "loop"])
def test_manifest(name: str, builds: Builds, golden: Golden) -> None:
    manifest = builds[name].document("manifest.json")
    golden.check_json(f"manifests/{name}.json", normalise_json(manifest, builds.folder))


@pytest.mark.parametrize("name", PROVEN)
def test_parity_file(name: str, builds: Builds, golden: Golden) -> None:
    report = builds[name].document("parity.json")
    golden.check_json(f"parity_files/{name}.json", normalise_json(report, builds.folder))


@pytest.mark.parametrize("name", [*PROVEN, "loop"])
def test_sentences_in_the_documents(name: str, builds: Builds, golden: Golden) -> None:
    documents = [builds[name].document(path.name) for path in sorted(builds[name].path.glob("*.json"))]
    golden.check_entry("texts/sentences.json", name, sentences_of(documents))


@pytest.mark.parametrize("name", [*PROVEN, "loop"])
def test_files_of_a_bundle(name: str, builds: Builds, golden: Golden) -> None:
    golden.check_entry("bundle_files.json", name, sorted(path.name for path in builds[name].path.iterdir()))


PARITY_RUNS: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "tiny": ("tiny", RUN),
    "tiny_trace": ("tiny", (*RUN, "--trace")),
    "tiny_layers": ("tiny", (*RUN, "--layers")),
    "tiny_torch": ("tiny", ("--engine", "torch", "--threads", 1, "--samples", 2)),
    "maps_trace_layers": ("maps", (*RUN, "--trace", "--layers")),
    "alone": ("alone", RUN),
}


@pytest.mark.parametrize("run", PARITY_RUNS)
def test_parity_as_json(run: str, builds: Builds, golden: Golden) -> None:
    name, options = PARITY_RUNS[run]
    facts = succeed("parity", builds[name].path, *options, "--json").facts
    golden.check_json(f"json/parity_{run}.json", normalise_json(facts, builds.folder))


@pytest.mark.parametrize("run", ["tiny", "tiny_trace", "tiny_layers"])
def test_parity_as_text(run: str, builds: Builds, golden: Golden) -> None:
    name, options = PARITY_RUNS[run]
    outcome = succeed("parity", builds[name].path, *options)
    golden.check_text(f"texts/parity_{run}.txt", normalise_text(outcome.out, builds.folder))


@pytest.mark.parametrize("name", ["tiny", "maps", "alone", "plugin_fp16", "loop_bf16"])
def test_inspect_as_json(name: str, builds: Builds, golden: Golden) -> None:
    facts = succeed("inspect", builds[name].path, "--json").facts
    bundle = {key: value for key, value in facts.items() if key not in OF_THE_GRAPH}
    golden.check_json(f"json/inspect_{name}.json", normalise_json(bundle, builds.folder))
    graph = {key: facts[key] for key in OF_THE_GRAPH}
    golden.check_where_recorded(f"graphs/inspect_{name}.json", exporter(), graph)


@pytest.mark.parametrize("name", ["tiny", "maps", "alone"])
def test_inspect_as_text(name: str, builds: Builds, golden: Golden) -> None:
    lines = normalise_text(succeed("inspect", builds[name].path).out, builds.folder).splitlines()
    golden.check_where_recorded(f"graphs/inspect_{name}_text.json", exporter(), lines)


def test_bench_as_json(builds: Builds, golden: Golden) -> None:
    options = ("--batch", "1,2", "--rounds", 1, "--threads", 1, "--engine", "onnxruntime")
    facts = succeed("bench", builds["tiny"].path, *options, "--json").facts
    golden.check_json("json/bench.json", {**structure_of(facts), "recipe": facts["recipe"], "rounds": facts["rounds"]})


def test_bench_without_memory_as_json(builds: Builds, golden: Golden) -> None:
    options = ("--batch", 1, "--rounds", 1, "--threads", 1, "--baseline", "none", "--no-memory")
    facts = succeed("bench", builds["alone"].path, *options, "--json").facts
    golden.check_json("json/bench_alone.json", structure_of(facts))


def test_backbones(golden: Golden, tmp_path: Path) -> None:
    golden.check_json("json/backbones.json", succeed("backbones", "--json").facts)
    golden.check_text("texts/backbones.txt", normalise_text(succeed("backbones").out, tmp_path))


def test_doctor_as_json(golden: Golden) -> None:
    """Names and keys are compared, but not which libraries work, which depends on the machine."""
    golden.check_json("json/doctor.json", _doctor(succeed("doctor", "--json").facts))


def _doctor(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "keys": sorted(facts),
        "machine": sorted(facts["machine"]),
        "libraries": sorted(facts["libraries"]),
        "engines": [{**dict.fromkeys(engine, "<value>"), "name": engine["name"]} for engine in facts["engines"]],
        "plugin": sorted(facts["plugin"]),
        "photographs": structure_of(facts["photographs"]),
    }


def test_recipe_import(golden: Golden, tmp_path: Path) -> None:
    config, out = RECIPES / "adapter_config.yaml", tmp_path / "imported.yaml"
    printed = succeed("recipe", "import", config, "--entry", "small_deit")
    golden.check_text("texts/recipe_import.yaml", printed.out)
    written = succeed("recipe", "import", config, "--entry", "small_deit", "--backbone", "deit_s", "--out", out)
    golden.check_text("texts/recipe_import_out.txt", normalise_text(written.out, tmp_path))
    options = ("--entry", "small_deit", "--backbone", "deit_s", "--out", out, "--force", "--json")
    facts = succeed("recipe", "import", config, *options).facts
    golden.check_json("json/recipe_import.json", normalise_json(facts, tmp_path))
