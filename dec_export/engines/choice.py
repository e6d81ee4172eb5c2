"""The choice of the engines that a build makes and proves on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dec_export.bundle.manifest import EngineVerdict
from dec_export.bundle.plans import BuildOptions
from dec_export.engines.registry import availability, engine_spec, engine_specs, names_with_cpu_fallback
from dec_export.engines.spec import EngineSpec
from dec_export.errors import EngineError
from dec_export.gpu import Gpu, why_no_gpu


@dataclass(frozen=True)
class EngineChoice:
    """The engines that a build makes and proves.

    named: the engines that the user named. plans: the engines to build. runnable: the engines to prove that need no
    building. options: the options of TensorRT engines. explicit: whether the user gave such options. left_out: the
    engines that will not be built, with the reasons.
    """

    named: tuple[str, ...]
    plans: tuple[str, ...]
    runnable: tuple[str, ...]
    options: BuildOptions
    explicit: bool
    left_out: dict[str, EngineVerdict]

    @property
    def keeps_timings(self) -> bool:
        """Whether a build of one of the engines measures timings that can be kept."""
        builders = (engine_spec(name).build for name in self.plans)
        return any(builder is not None and builder.keeps_timings for builder in builders)


def choose_engines(
    asked: Sequence[str], options: BuildOptions | None, gpu: Gpu | None, cpu_fallback: bool = False
) -> EngineChoice:
    """Choose the engines of these names, with "auto" for all that can be built here, and "none" for none.

    Raises EngineError for an unknown name, for a named engine that cannot be built here, and for options of TensorRT
    when no TensorRT engine will be built.
    """
    if "none" in asked and set(asked) != {"none"}:
        raise EngineError("--engine none cannot be combined with other engines: leave one of them out.")
    named = [engine_spec(name) for name in dict.fromkeys(asked) if name not in ("auto", "none")]
    chosen = options or BuildOptions()
    specs = [*named, *(spec for spec in _automatic() if "auto" in asked and spec not in named)]
    reasons = {spec.name: _why_not_built(spec, gpu, chosen, cpu_fallback) for spec in specs}
    for spec in named:
        if reasons[spec.name]:
            raise EngineError(f"The engine '{spec.name}' cannot be built: {reasons[spec.name]}.")
    built = [spec for spec in specs if reasons[spec.name] is None]
    plans = tuple(spec.name for spec in built if spec.build is not None)
    if cpu_fallback and not any(spec.falls_back_to_cpu for spec in specs):
        raise EngineError(f"--cpu-fallback is for {names_with_cpu_fallback()}, which was not asked for: leave it out.")
    if options is not None and not plans:
        why = "".join(f"; {name}: {reason}" for name, reason in reasons.items() if reason)
        raise EngineError(
            f"Options of TensorRT engines were given, and no such engine will be built{why}: leave them out."
        )
    return EngineChoice(
        named=tuple(spec.name for spec in named),
        plans=plans,
        runnable=tuple(spec.name for spec in built if spec.build is None),
        options=chosen,
        explicit=options is not None,
        left_out={name: EngineVerdict(gate="not built", reason=reason) for name, reason in reasons.items() if reason},
    )


def divide_plans(built: Sequence[str], gpu: Gpu | None) -> tuple[tuple[str, ...], dict[str, EngineVerdict]]:
    """Divide the built engines into those that can be proved here, and the others with the reasons."""
    if gpu is None:
        return (), {name: _not_run(why_no_gpu()) for name in built}
    reason = "one process runs one TensorRT; prove this one with dec-export parity --engine"
    return tuple(built[:1]), {name: _not_run(f"{reason} {name}") for name in built[1:]}


def _automatic() -> list[EngineSpec]:
    """Return the engines of "auto". Those that need no building come first, and among these those without a GPU."""
    automatic = (spec for spec in engine_specs() if spec.automatic)
    return sorted(automatic, key=lambda spec: (spec.build is not None, spec.needs_gpu))


def _not_run(reason: str) -> EngineVerdict:
    return EngineVerdict(gate="not run", reason=f"built and checked, but {reason}")


def _why_not_built(spec: EngineSpec, gpu: Gpu | None, options: BuildOptions, cpu_fallback: bool) -> str | None:
    found = availability(spec.name, gpu)
    if not found.can_build and not (cpu_fallback and spec.falls_back_to_cpu):
        return found.detail
    return spec.build.why_unsupported(options) if spec.build is not None else None
