"""Fixtures: bundles with trained weights, and a server for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from dec_export.bundle.store import Bundle
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.engines.tensorrt.plan import LayerCounts, PlanEntry
from dec_export.serving.triton.options import ServingOptions
from dec_export.serving.triton.repository import write_repository
from tests.serving.server import TritonServer


def with_plan(bundle: Bundle, flavour: str = "tensorrt", batch: tuple[int, int, int] = (1, 4, 8)) -> Bundle:
    """The bundle as if it held a plan, for GPUs of 9.0, whose bytes are those of the ONNX file."""
    entry = PlanEntry(
        file="model.onnx",
        layers_file="model.layers.json",
        version="10.9.0.34",
        cuda="12.8",
        gpu="a GPU",
        compute_capabilities=("9.0",),
        and_later=False,
        options=BuildOptions(batch=batch),
        timing_cache=None,
        precision={},
        layers=LayerCounts(count=1, by_type={}, by_dtype={}),
        seconds=1,
        peak_memory_bytes=None,
    )
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"plans": {flavour: entry}}))


@dataclass
class Served:
    """A running server: `digits` by the Python backend, `maps` by "onnxruntime", `planned` by "tensorrt"."""

    server: TritonServer
    repository: Path
    digits: Bundle
    maps: Bundle


@pytest.fixture(scope="session")
def served(digits_bundle: Bundle, map_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    repository = folder / "repository"
    write_repository(digits_bundle, repository, ServingOptions(device="cpu"))
    write_repository(map_bundle, repository, ServingOptions(device="cpu", backend="onnxruntime", name="maps"))
    planned = with_plan(digits_bundle)
    plan = ServingOptions("tensorrt", "planned", tensorrt_version="10.9.0.34", compute_capability="9.0")
    write_repository(planned, repository, plan)
    on_cpu = repository / "planned" / "config.pbtxt"
    on_cpu.write_text(on_cpu.read_text().replace("KIND_GPU", "KIND_CPU"))
    assert onnx.load(repository / "planned" / "1" / "model.plan").graph.name == "digits"
    with TritonServer(repository, folder / "work", stand_ins=True) as server:
        yield Served(server, repository, digits_bundle, map_bundle)
    assert server.leftovers() == []
