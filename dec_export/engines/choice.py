"""Which engines a build makes and proves on this machine, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dec_export.engines.availability import Availability, availability
from dec_export.engines.base import CPU_ENGINES, CUDA_ENGINE, TENSORRT_ENGINES, check_engine_name
from dec_export.engines.tensorrt.flavours import FLAVOURS
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import EngineError
from dec_export.gpu import ABSENT, Gpu

# PyTorch proves nothing that the references do not: it runs only when it is asked for by name.
_AUTO_ENGINES = (CPU_ENGINES[0], CUDA_ENGINE, *TENSORRT_ENGINES)


@dataclass(frozen=True)
class EngineChoice:
    """named: engines that were asked for by name. plans: TensorRT engines to build. runnable: engines to prove.

    left_out: for those that will not be built, or not be proved, a "gate" ("not built", "not run") and a "reason".
    """

    named: list[str]
    plans: list[str]
    runnable: list[str]
    options: BuildOptions
    left_out: dict[str, dict[str, str]]


def choose_engines(
    asked: Sequence[str], options: BuildOptions | None, gpu: Gpu | None, cpu_fallback: bool = False
) -> EngineChoice:
    """Resolve "auto", and "none".

    Raises EngineError for a name that does not exist, an engine that was named and cannot be built here, and options
    of TensorRT when no TensorRT engine will be built.
    """
    if "none" in asked and set(asked) != {"none"}:
        raise EngineError("--engine none cannot be combined with other engines.")
    named = [name for name in dict.fromkeys(asked) if name not in ("auto", "none")]
    for name in named:
        check_engine_name(name)
    chosen = options or BuildOptions()
    automatic = [name for name in _AUTO_ENGINES if "auto" in asked and name not in named]
    reasons = {name: _why_not_built(availability(name, gpu), chosen, cpu_fallback) for name in [*named, *automatic]}
    for name in named:
        if reasons[name]:
            raise EngineError(f"The engine '{name}' cannot be built: {reasons[name]}.")
    plans = [name for name, reason in reasons.items() if reason is None and name in TENSORRT_ENGINES]
    if options is not None and not plans:
        why = "".join(f"; {name}: {reason}" for name, reason in reasons.items() if reason)
        raise EngineError(f"Options of TensorRT engines were given, and no such engine will be built{why}.")
    not_run = _why_not_run(plans, gpu)
    left_out = {name: {"gate": "not built", "reason": reason} for name, reason in reasons.items() if reason}
    left_out |= {name: {"gate": "not run", "reason": reason} for name, reason in not_run.items()}
    return EngineChoice(named, plans, [name for name in reasons if name not in left_out], chosen, left_out)


def _why_not_built(found: Availability, options: BuildOptions, cpu_fallback: bool) -> str | None:
    if not found.can_build and not (cpu_fallback and found.name == CUDA_ENGINE):
        return found.detail
    return options.why_unfit(FLAVOURS[found.name]) if found.name in FLAVOURS else None


def _why_not_run(plans: Sequence[str], gpu: Gpu | None) -> dict[str, str]:
    if gpu is None:
        return dict.fromkeys(plans, f"built and checked, but {ABSENT} to run it on")
    return {
        name: f"built and checked; one process runs one TensorRT, so prove it with parity --engine {name}"
        for name in plans[1:]
    }
