"""Build an engine from a bundle's ONNX file in a separate process."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict

from dec_export import progress
from dec_export.children import python_command
from dec_export.engines.tensorrt import timing_cache
from dec_export.engines.tensorrt.flavours import TENSORRT, Flavour, cuda_release, installed_version
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.engines.tensorrt.plan import (
    LayerCounts,
    MatrixProducts,
    PlanEntry,
    PluginUse,
    dotted,
    read_version,
    targets,
)
from dec_export.errors import EngineError, PrecisionError
from dec_export.gpu import Gpu

# The worker reserves stdout for events before any library can print to it.
_WORKER = python_command(
    "import os\nevents = os.dup(1); os.dup2(2, 1)\nfrom dec_export.engines.tensorrt.worker import main\nmain(events)"
)
_LAST_WORDS = 300

_Request = Mapping[str, object]  # The worker gets this as JSON.


class _Built(BaseModel):
    """The facts about a plan that the worker reports, under the names of `PlanEntry`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: dict[str, MatrixProducts]
    layers: LayerCounts
    plugin: PluginUse | None
    peak_memory_bytes: int | None


def build_plan(
    flavour: Flavour,
    onnx_path: Path,
    folder: Path,
    options: BuildOptions,
    *,
    gpu: Gpu | None,
    timing_folder: Path | None = None,
) -> PlanEntry:
    """Write the plan of an ONNX file, and the list of its layers, into `folder`; return the manifest's entry for it.

    The engine's inputs, outputs, profile and precision are read back and checked. TensorRT's progress is reported to
    `progress`. Raises EngineError, and leaves no plan, when the flavour is not installed, needs a GPU that is missing,
    does not support an option, or fails.
    """
    version = installed_version(flavour)
    unfit = options.why_unsupported(flavour)
    if unfit:
        raise EngineError(f"The engine '{flavour.name}' cannot be built with these options: {unfit}.")
    capabilities, and_later = targets(flavour, options, gpu)
    cuda = cuda_release(flavour)
    kept = _kept_timings(flavour, version, cuda, gpu, timing_folder)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dec-export-") as scratch:
        working = Path(scratch) / "timings"
        kept = kept if kept and timing_cache.borrow(kept, working) else None
        facts = _write(flavour, onnx_path, folder, options, working if kept else None)
        kept = kept if kept and timing_cache.keep(working, kept) else None
    return PlanEntry(
        file=flavour.plan,
        layers_file=flavour.layers,
        version=read_version(folder / flavour.plan, flavour),
        cuda=cuda,
        gpu=gpu.name if gpu and flavour is TENSORRT else None,
        compute_capabilities=tuple(map(dotted, capabilities)),
        and_later=and_later,
        options=options,
        timing_cache=kept.name if kept else None,
        precision=facts.precision,
        layers=facts.layers,
        plugin=facts.plugin,
        seconds=round(time.perf_counter() - start, 2),
        peak_memory_bytes=facts.peak_memory_bytes,
    )


def _write(flavour: Flavour, onnx_path: Path, folder: Path, options: BuildOptions, timings: Path | None) -> _Built:
    """Let the worker write the plan and its layers, and check the plan's header. No file remains when that fails."""
    plan, layers = folder / flavour.plan, folder / flavour.layers
    request = {
        "flavour": flavour.name,
        "options": options.model_dump(mode="json"),
        "onnx": str(onnx_path),
        "plan": str(plan),
        "layers": str(layers),
        "timing_cache": str(timings) if timings else None,
    }
    try:
        facts = _run_worker(request, flavour)
        read_version(plan, flavour)
    except BaseException:
        plan.unlink(missing_ok=True)
        layers.unlink(missing_ok=True)
        raise
    return facts


def _kept_timings(
    flavour: Flavour, version: str, cuda: str | None, gpu: Gpu | None, folder: Path | None
) -> Path | None:
    """Return the file for this build's timings, or None for TensorRT for RTX, which measures nothing in a build."""
    if flavour is not TENSORRT or gpu is None:
        return None
    return (folder or timing_cache.default_folder()) / timing_cache.file_name(flavour, version, cuda, gpu)


def _run_worker(request: _Request, flavour: Flavour) -> _Built:
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(  # noqa: S603 - the interpreter and the module are our own
            _WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            facts = _converse(process, request)
        except BaseException:  # The build must also be stopped after an interrupt.
            process.kill()
            raise
        _close(process.stdin)
        code = process.wait()
        if facts is None:
            raise EngineError(f"Building '{flavour.name}' {_how_it_ended(code, errors)}")
        return facts


def _converse(process: subprocess.Popen[str], request: _Request) -> _Built | None:
    """Send the request and read the events. The result is None when the worker ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:  # A library printed this line when Python started.
            continue
        if "error" in event:
            raise (PrecisionError if event["precision"] else EngineError)(event["error"])
        if "errno" in event:
            raise OSError(event["errno"], event["message"], event["file"])
        if "done" in event:
            return _Built.model_validate(event["done"])
        progress.tell(f"{event['phase']} {event['step'] + 1}/{max(event['of'], event['step'] + 1)}")
    return None


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.close()


def _how_it_ended(code: int, errors: IO[str]) -> str:
    if code == -signal.SIGKILL:
        return (
            "was ended by the system, probably because its memory ran out: choose a smaller largest batch, a smaller "
            "backbone, or a machine with more memory."
        )
    errors.seek(0)
    words = " ".join(errors.read().split())[-_LAST_WORDS:]
    if code < 0:
        return f"crashed ({signal.Signals(-code).name}); the end of its output: {words or 'none'}"
    return f"ended with exit code {code}; the end of its output: {words or 'none'}"
