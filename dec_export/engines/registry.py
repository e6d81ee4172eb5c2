"""The engines that there are. A new one is a module with `SPECS`, and its line in `_MODULES`.

Listing engines imports their modules, which import no runtime before an engine is probed or loaded.
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
    """Every engine, the one that `auto` prefers first."""
    found: list[EngineSpec] = []
    for module in _MODULES:
        found += import_module(module).SPECS
    return tuple(sorted(found, key=lambda spec: spec.preference))


def engine_names() -> tuple[str, ...]:
    """The names of all engines, the one that `auto` prefers first."""
    return tuple(spec.name for spec in engine_specs())


def engine_spec(name: str) -> EngineSpec:
    """The engine of that name; EngineError, which suggests the nearest name, when there is none."""
    for spec in engine_specs():
        if spec.name == name:
            return spec
    nearest = difflib.get_close_matches(name, engine_names(), n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise EngineError(f"Unknown engine '{name}'.{hint} Known engines: {', '.join(engine_names())}.")


def builder_of(name: str) -> Builder:
    """What builds the engine of that name; EngineError when it is unknown or needs no building."""
    builder = engine_spec(name).build
    if builder is None:
        raise EngineError(f"The engine '{name}' runs a bundle as it is: there is nothing to build for it.")
    return builder


def names_with_cpu_fallback() -> str:
    """The engines that `--cpu-fallback` is for, for sentences."""
    return ", ".join(spec.name for spec in engine_specs() if spec.falls_back_to_cpu)


def libraries() -> tuple[str, ...]:
    """The distributions whose versions tell what a machine runs: of dec-export itself and of all engines."""
    of_engines = (library for spec in engine_specs() for library in spec.libraries)
    return tuple(dict.fromkeys((*LIBRARIES, *of_engines)))


def availability(name: str, gpu: Gpu | None) -> Availability:
    """Whether an engine can be built and run on this machine, whose GPU is `gpu`, without loading a model."""
    spec = engine_spec(name)
    try:
        return spec.probe(gpu)
    except Exception as error:  # a library that is missing or broken fails in ways of its own
        package = distribution_of(spec.package) or spec.package
        return unavailable(f"does not load ({error}): pip install --force-reinstall {package}")


def all_availabilities() -> dict[str, Availability]:
    """Every engine's availability here, in the order in which `auto` prefers the engines."""
    try:
        gpu = find_gpu()
    except Exception:  # a PyTorch that does not load; the engine's own line says so
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
    """The engine `name` for a bundle; with `expose_phi`, it returns the solved phis as well, if it can.

    With `inner`, it returns all tensors that `dec_export.names` names: phis, the solver's iterates, features.

    "auto" is the best that this machine can run of what the bundle holds; what was tried before it is logged. A
    TensorRT engine returns the outputs that it was built with, whatever `expose_phi` asks.
    Raises EngineError when the engine is unknown, not in the bundle, or cannot run here.
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
            f"--cpu-fallback is for {names_with_cpu_fallback()} and would do nothing for '{name}': leave it out."
        )


def _holds(bundle: Bundle, spec: EngineSpec) -> bool:
    """Whether a bundle has what an engine loads."""
    return spec.build is None or spec.name in bundle.manifest.plans


def _start(spec: EngineSpec, bundle: Bundle, options: RunOptions, shown: Shown) -> Engine:
    """Load an engine; EngineError, with what `doctor` says of it, when its library cannot be imported."""
    try:
        return spec.load(bundle, options, shown)
    except ImportError as error:
        found = availability(spec.name, find_gpu())
        reason = str(error) if found.can_run else found.detail
        raise EngineError(f"The engine '{spec.name}' cannot be used: {reason}.") from error


def _load_best(bundle: Bundle, options: RunOptions, shown: Shown) -> Engine:
    """The first engine that the bundle holds and that starts; the last of them says why when none does."""
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
