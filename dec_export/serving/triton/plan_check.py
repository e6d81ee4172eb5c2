"""The check whether the server's TensorRT and GPU can load a plan, as far as they are known."""

from __future__ import annotations

from dec_export.engines.tensorrt.flavours import FLAVOURS, Flavour, installed_version, why_missing
from dec_export.engines.tensorrt.plan import PlanEntry, dotted
from dec_export.errors import ServingError
from dec_export.gpu import find_gpu


def check_plan(engine: str, plan: PlanEntry, version: str | None, capability: str | None) -> None:
    """Check a plan of that flavour of TensorRT.

    Args:
        version: the version of the server's TensorRT; the default is the version on this machine, if there is one.
        capability: the compute capability of the server's GPU, such as 9.0; the default is that of this machine's GPU.

    Raises:
        ServingError: if the server cannot load the plan.
    """
    flavour = FLAVOURS[engine]
    if plan.options.version_compatible:
        raise ServingError(
            "The plan is version-compatible, so it contains code that a server runs only with a special option: "
            "build the bundle without --version-compatible, with the TensorRT of the server's image."
        )
    _check_version(flavour, plan, version)
    _check_gpu(flavour, plan, capability)


def _check_version(flavour: Flavour, plan: PlanEntry, version: str | None) -> None:
    if version is None and why_missing(flavour) is None:
        version = installed_version(flavour)
    if version is not None and not _same_version(version, plan.version):
        raise ServingError(
            f"The plan was built with {flavour.label} {plan.version} and runs only with this version, but the server "
            f"has {version}: build the bundle with the server's version, or use a server image with the plan's version."
        )


def _check_gpu(flavour: Flavour, plan: PlanEntry, capability: str | None) -> None:
    gpu = find_gpu()
    if capability is None and gpu is not None:
        capability = dotted(gpu.compute_capability)
        if plan.bound_to_another(flavour, gpu):
            raise ServingError(
                f"The plan was built on {plan.gpu} and runs only on this GPU model, but this machine has {gpu.name}: "
                "build the bundle here, or with --hardware-compatibility."
            )
    if capability is not None and not plan.takes_capability(_parse_capability(capability)):
        raise ServingError(
            f"The plan is for GPUs of compute capability {plan.capabilities}, but the server's GPU has {capability}: "
            "build the bundle for this GPU."
        )


def _same_version(given: str, built: str) -> bool:
    """Return whether two versions agree in all numbers that both contain; an image may give three of four numbers."""
    return len(given.split(".")) >= 3 and all(a == b for a, b in zip(given.split("."), built.split("."), strict=False))


def _parse_capability(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(".")))
    except ValueError as error:
        raise ServingError(f"--compute-capability expects a number as in 9.0, found '{text}'.") from error
