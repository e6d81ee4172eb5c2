"""Whether the server's TensorRT and GPU can load a plan, as far as they are known before the server starts."""

from __future__ import annotations

from dec_export.engines.tensorrt.flavours import FLAVOURS, Flavour, installed_version, why_missing
from dec_export.engines.tensorrt.plan import PlanEntry, dotted
from dec_export.errors import ServingError
from dec_export.gpu import find_gpu


def check_plan(engine: str, plan: PlanEntry, version: str | None, capability: str | None) -> None:
    """Check a plan of that flavour of TensorRT.

    Args:
        version: of the server's TensorRT; by default that of this machine, if it has one.
        capability: the compute capability of the server's GPU, as in 9.0; by default that of this machine's GPU.

    Raises:
        ServingError: if the server cannot load the plan.
    """
    flavour = FLAVOURS[engine]
    if plan.options.version_compatible:
        raise ServingError(
            "The plan is version-compatible: it carries code that a server runs only when it is started to. "
            "Build the bundle without --version-compatible, with the TensorRT of the server's image."
        )
    _check_version(flavour, plan, version)
    _check_gpu(flavour, plan, capability)


def _check_version(flavour: Flavour, plan: PlanEntry, version: str | None) -> None:
    if version is None and why_missing(flavour) is None:
        version = installed_version(flavour)
    if version is not None and not _same_version(version, plan.version):
        raise ServingError(
            f"The plan was built with {flavour.label} {plan.version}, the server has {version}, and a plan runs with "
            "its own version alone: build the bundle with the server's version, or choose its image by the plan's."
        )


def _check_gpu(flavour: Flavour, plan: PlanEntry, capability: str | None) -> None:
    gpu = find_gpu()
    if capability is None and gpu is not None:
        capability = dotted(gpu.compute_capability)
        if plan.bound_to_another(flavour, gpu):
            raise ServingError(
                f"The plan was built on {plan.gpu} and runs on that GPU alone, this machine has {gpu.name}: "
                "build the bundle here, or with --hardware-compatibility."
            )
    if capability is not None and not plan.takes_capability(_parse_capability(capability)):
        raise ServingError(
            f"The plan is for GPUs of compute capability {plan.capabilities}, the server's has {capability}: "
            "build the bundle for it."
        )


def _same_version(given: str, built: str) -> bool:
    """Whether two versions agree in all numbers that both name; an image may name three of four."""
    return len(given.split(".")) >= 3 and all(a == b for a, b in zip(given.split("."), built.split("."), strict=False))


def _parse_capability(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(".")))
    except ValueError as error:
        raise ServingError(f"--compute-capability expects a number as in 9.0, found '{text}'.") from error
