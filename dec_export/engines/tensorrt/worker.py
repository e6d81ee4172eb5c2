"""The process that builds one engine. `build.py` starts it and reads its events.

A build can exhaust the memory, crash inside TensorRT, or take minutes in which Python cannot be interrupted. None of
this may affect the process that holds a half-written bundle. Polygraphy also supports only one flavour in a process.

The request is one line of JSON on stdin, which stays open. When it closes, the parent process has ended, and this
process ends too. Events are lines of JSON: {"phase", "step", "of"}, then {"done"}, {"error"} or {"errno"}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any  # TensorRT ships no types, and neither has JSON

import onnx

from dec_export.engines.tensorrt import layers
from dec_export.engines.tensorrt.flavours import FLAVOURS, Backend, load_backend
from dec_export.engines.tensorrt.layers import EngineContents
from dec_export.engines.tensorrt.log import Log
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.engines.tensorrt.plan import PluginUse
from dec_export.engines.tensorrt.plugin_use import check_plugin_layers, prepare_plugin
from dec_export.errors import DecExportError, EngineError, PrecisionError
from dec_export.onnx_export.checks import check_dec_nodes

_EVENT_INTERVAL = 0.2
Emit = Callable[[dict[str, Any]], None]


def main(events: int) -> None:
    """Read a request, build the engine, and write events to the file descriptor `events`."""
    emit = _emitter(events)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        emit({"done": _build(request, emit)})
    except DecExportError as error:
        emit({"error": str(error), "precision": isinstance(error, PrecisionError)})
    except OSError as error:
        emit({"errno": error.errno, "message": error.strerror, "file": str(error.filename or request["plan"])})
    except MemoryError:
        emit({"error": "The build ran out of memory: choose a smaller backbone.", "precision": False})
    # The process ends without Python's clean-up, which could wait for the thread that still reads stdin.
    os._exit(0)


def _emitter(descriptor: int) -> Emit:
    events = os.fdopen(descriptor, "w", encoding="utf-8")

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    return emit


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _build(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    flavour = FLAVOURS[request["flavour"]]
    options = BuildOptions.model_validate(request["options"])
    onnx_path, plan_path, layers_path = (Path(request[key]) for key in ("onnx", "plan", "layers"))
    backend = load_backend(flavour)
    log = Log(backend.trt)
    proto = onnx.load(onnx_path)
    check_dec_nodes(proto)
    proto, plugin = prepare_plugin(flavour, proto)
    plan = _compile(backend, log.logger, proto, plugin, options, request["timing_cache"], emit)
    if plan is None:
        raise EngineError(f"{flavour.label} cannot build this engine: {log.reason()}")
    plan_path.write_bytes(plan)
    contents = _contents(backend, log, plan)
    layers.check_bindings(contents, proto, options.batch)
    precision = layers.check_precision(contents, proto, complete=log.contents is not None)
    layers_path.write_text(json.dumps(contents.as_dict()) + "\n", encoding="utf-8")
    return {
        "precision": precision,
        "layers": layers.summary(contents),
        "plugin": plugin.model_dump() if plugin else None,
        "peak_memory_bytes": _peak_memory(),
    }


def _compile(
    backend: Backend,
    logger: Any,
    proto: onnx.ModelProto,
    plugin: PluginUse | None,
    options: BuildOptions,
    timing_cache: str | None,
    emit: Emit,
) -> bytes | None:
    """Build the plan. The result is None when TensorRT fails; its log then holds the reason."""
    from polygraphy.exception import PolygraphyException

    trt = backend.trt
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"node '{e.node_name()}' ({e.node_operator()}): {e.desc()}" for e in errors)
        raise EngineError(f"TensorRT cannot parse the ONNX model: {reasons}")
    if plugin and plugin.used:
        check_plugin_layers(network, trt, proto)
    try:
        config = backend.create_config(
            **_config_options(backend, proto, options, timing_cache), progress_monitor=_monitor(trt, emit)
        )(builder, network)
        # TF32 keeps only 10 of the 23 bits of a float32's fraction, and the graph decides where fewer bits are used.
        config.clear_flag(trt.BuilderFlag.TF32)
        plan = backend.loaders.EngineBytesFromNetwork(
            (builder, network, parser), config=config, save_timing_cache=timing_cache
        )()
    except PolygraphyException:
        return None
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    """Return the flags that make TensorRT use the graph's types.

    This is always so from TensorRT 11 on and in TensorRT for RTX; earlier versions need a flag.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config_options(
    backend: Backend, proto: onnx.ModelProto, options: BuildOptions, timing_cache: str | None
) -> dict[str, Any]:
    trt = backend.trt
    profile = backend.loaders.Profile()
    for value in proto.graph.input:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim[1:]]
        smallest, likeliest, largest = ([n, *shape] for n in options.batch)
        profile.add(value.name, min=smallest, opt=likeliest, max=largest)
    chosen: dict[str, Any] = {"profiles": [profile], "profiling_verbosity": trt.ProfilingVerbosity.DETAILED}
    if options.workspace_bytes is not None:
        chosen["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_bytes}
    if options.compute_capabilities:
        chosen["compute_capabilities"] = _known_capabilities(trt, options)
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.replace("-", "_").upper()
        chosen["hardware_compatibility_level"] = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        chosen["version_compatible"] = True
    if timing_cache is not None:
        chosen["load_timing_cache"] = timing_cache
    return chosen


def _known_capabilities(trt: Any, options: BuildOptions) -> list[tuple[int, int]]:
    names = {match[2:] for match in trt.ComputeCapability.__members__ if match.startswith("SM")}
    known = {f"{name[:-1]}.{name[-1]}" for name in names}
    unknown = [c for c in options.compute_capabilities if c not in known]
    if unknown:
        listed = ", ".join(sorted(known, key=lambda c: float(c)))
        raise EngineError(
            f"TensorRT for RTX {trt.__version__} does not build for compute capability {unknown[0]}, expected one of "
            f"{listed}: name one of these, or leave --compute-capability out for 8.0 and later."
        )
    return options.capability_pairs


def _contents(backend: Backend, log: Log, plan: bytes) -> EngineContents:
    if log.contents is not None:
        return layers.contents_from_log(log.contents)
    runtime = backend.trt.Runtime(log.logger)
    # The plan was built here, so the library in a version-compatible plan is trusted.
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"The engine that was built cannot be read back: {log.reason()}")
    return layers.contents_from_engine(engine, backend.trt)


def _peak_memory() -> int | None:
    """Return the largest amount of memory that this process held, in bytes, or None outside Linux.

    `getrusage` would count the memory of the parent process when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # Only Linux has this file.
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _monitor(trt: Any, emit: Emit) -> Any:
    """Return a progress monitor for TensorRT that emits a few events each second."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._last = 0.0

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step)
            return True

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def _tell(self, phase: str, step: int) -> None:
            now = time.monotonic()
            if now - self._last >= _EVENT_INTERVAL:
                self._last = now
                emit({"phase": phase, "step": step, "of": self._steps.get(phase, 0)})

    return Monitor()
