"""Which engines a build makes and proves on this machine, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dec_export.engines.availability import Availability, availability
from dec_export.engines.base import CPU_ENGINES, CUDA_ENGINE, TENSORRT_ENGINES, check_engine_name
from dec_export.engines.tensorrt.flavours import FLAVOURS
from dec_export.engines.tensorrt.options import BuildOptions
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, absence

# PyTorch proves nothing that the references do not: it runs only when it is asked for by name.
_AUTO_ENGINES = (CPU_ENGINES[0], CUDA_ENGINE, *TENSORRT_ENGINES)


@dataclass(frozen=True)
class EngineChoice:
    """named: engines that were asked for by name. plans: TensorRT engines to build. runnable: others, to prove.

    explicit: options of TensorRT were given. left_out: for those that will not be built, a "gate" ("not built") and a
    "reason".
    """

    named: list[str]
    plans: list[str]
    runnable: list[str]
    options: BuildOptions
    explicit: bool
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
    if cpu_fallback and CUDA_ENGINE not in reasons:
        raise EngineError(f"--cpu-fallback is for {CUDA_ENGINE}, which was not asked for: leave it out.")
    if options is not None and not plans:
        why = "".join(f"; {name}: {reason}" for name, reason in reasons.items() if reason)
        raise EngineError(f"Options of TensorRT engines were given, and no such engine will be built{why}.")
    left_out = {name: {"gate": "not built", "reason": reason} for name, reason in reasons.items() if reason}
    runnable = [name for name in reasons if name not in left_out and name not in TENSORRT_ENGINES]
    return EngineChoice(named, plans, runnable, chosen, options is not None, left_out)


def divide_plans(built: Sequence[str], gpu: Gpu | None) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Which of the TensorRT engines that were built can be proved here, and why the others cannot."""
    if gpu is None:
        return [], {name: _not_run(absence()) for name in built}
    reason = "one process runs one TensorRT; prove this one with dec-export parity --engine"
    return list(built[:1]), {name: _not_run(f"{reason} {name}") for name in built[1:]}


def _not_run(reason: str) -> dict[str, str]:
    return {"gate": "not run", "reason": f"built and checked, but {reason}"}


def _why_not_built(found: Availability, options: BuildOptions, cpu_fallback: bool) -> str | None:
    if not found.can_build and not (cpu_fallback and found.name == CUDA_ENGINE):
        return found.detail
    return options.why_unfit(FLAVOURS[found.name]) if found.name in FLAVOURS else None
