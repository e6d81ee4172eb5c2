"""The registry of all engines. A new engine needs a module with `SPECS`, and a line in `_MODULES`.

A list of the engines imports their modules, which import no runtime until an engine is probed or loaded.
"""

from __future__ import annotations

import difflib
import functools
import logging
from importlib import import_module
from typing import TYPE_CHECKING

from dec_export.engines.base import DEFAULT_OPTIONS, Engine, RunOptions, Shown
from dec_export.engines.spec import Availability, Builder, EngineSpec, unavailable
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, find_gpu
from dec_export.libraries import LIBRARIES, distribution_of

if TYPE_CHECKING:
    from dec_export.bundle.store import Bundle

_LOGGER = logging.getLogger(__name__)

_MODULES = (
    "dec_export.engines.tensorrt.spec",
    "dec_export.engines.onnxruntime",
    "dec_export.engines.openvino",
    "dec_export.engines.torch",
)


@functools.cache
def engine_specs() -> tuple[EngineSpec, ...]:
    """Return every engine, in the order in which `auto` prefers them."""
    found: list[EngineSpec] = []
    for module in _MODULES:
        found += import_module(module).SPECS
    return tuple(sorted(found, key=lambda spec: spec.preference))


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines, in the order in which `auto` prefers them."""
    return tuple(spec.name for spec in engine_specs())


def engine_spec(name: str) -> EngineSpec:
    """Return the engine of that name. Raises EngineError, which suggests the most similar name, when there is none."""
    for spec in engine_specs():
        if spec.name == name:
            return spec
    nearest = difflib.get_close_matches(name, engine_names(), n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise EngineError(f"Unknown engine '{name}'.{hint} Known engines: {', '.join(engine_names())}.")


def builder_of(name: str) -> Builder:
    """Return the builder of the engine of that name. Raises EngineError when it is unknown or has no builder."""
    builder = engine_spec(name).build
    if builder is None:
        raise EngineError(f"The engine '{name}' runs the ONNX file of a bundle, and needs no building.")
    return builder


def names_with_cpu_fallback() -> str:
    """Return the names of the engines that support `--cpu-fallback`, separated by commas."""
    return ", ".join(spec.name for spec in engine_specs() if spec.falls_back_to_cpu)


def libraries() -> tuple[str, ...]:
    """Return the distributions whose versions are reported: those of dec-export and those of all engines."""
    of_engines = (library for spec in engine_specs() for library in spec.libraries)
    return tuple(dict.fromkeys((*LIBRARIES, *of_engines)))


def availability(name: str, gpu: Gpu | None) -> Availability:
    """Find out, without a model, whether an engine can be built and run on this machine, whose GPU is `gpu`."""
    spec = engine_spec(name)
    try:
        return spec.probe(gpu)
    except Exception as error:  # A missing or broken library can raise any error.
        package = distribution_of(spec.package) or spec.package
        return unavailable(f"does not load ({error}): pip install --force-reinstall {package}")


def all_availabilities() -> dict[str, Availability]:
    """Return every engine's availability here, in the order in which `auto` prefers the engines."""
    try:
        gpu = find_gpu()
    except Exception:  # PyTorch does not load, and the entry of its engine says so.
        gpu = None
    return {name: availability(name, gpu) for name in engine_names()}


def load(
    bundle: Bundle,
    name: str = "auto",
    *,
    options: RunOptions = DEFAULT_OPTIONS,
    expose_phi: bool = False,
    inner: bool = False,
) -> Engine:
    """Load the engine `name` for a bundle.

    With `expose_phi`, the engine also returns the solved phis, if it can. With `inner`, it also returns all tensors
    that `dec_export.names` names: phis, the solver's iterates, and features. A TensorRT engine always returns the
    outputs with which it was built.

    "auto" loads the first engine in the order of preference that the bundle holds and this machine can run; the log
    names the engines that were tried before it. Raises EngineError when the engine is unknown, not in the bundle, or
    cannot run here.
    """
    shown = Shown(phi=expose_phi, inner=inner)
    if name == "auto":
        _check_cpu_fallback(name, False, options)
        return _load_best(bundle, options, shown)
    spec = engine_spec(name)
    _check_cpu_fallback(name, spec.falls_back_to_cpu, options)
    if not _holds(bundle, spec):
        raise EngineError(f"The bundle '{bundle.path}' holds no engine '{name}': build it with --engine {name}.")
    return _start(spec, bundle, options, shown)


def _check_cpu_fallback(name: str, falls_back_to_cpu: bool, options: RunOptions) -> None:
    if options.cpu_fallback and not falls_back_to_cpu:
        raise EngineError(
            f"--cpu-fallback is for {names_with_cpu_fallback()} and has no effect on '{name}': leave it out."
        )


def _holds(bundle: Bundle, spec: EngineSpec) -> bool:
    """Return whether a bundle holds the file that an engine loads."""
    return spec.build is None or spec.name in bundle.manifest.plans


def _start(spec: EngineSpec, bundle: Bundle, options: RunOptions, shown: Shown) -> Engine:
    """Load an engine. Raises EngineError with the reason that `doctor` gives when its library cannot be imported."""
    try:
        return spec.load(bundle, options, shown)
    except ImportError as error:
        found = availability(spec.name, find_gpu())
        reason = str(error) if found.can_run else found.detail
        raise EngineError(f"The engine '{spec.name}' cannot be used: {reason}.") from error


def _load_best(bundle: Bundle, options: RunOptions, shown: Shown) -> Engine:
    """Load the first engine that the bundle holds and that starts. Raises the last engine's error when none starts."""
    gpu = find_gpu()
    *others, last = (
        spec
        for spec in engine_specs()
        if spec.automatic and _holds(bundle, spec) and (gpu is not None or not spec.needs_gpu)
    )
    for spec in others:
        try:
            return _start(spec, bundle, options, shown)
        except EngineError as error:
            _LOGGER.warning("The engine '%s' was passed over: %s", spec.name, error)
    return _start(last, bundle, options, shown)
