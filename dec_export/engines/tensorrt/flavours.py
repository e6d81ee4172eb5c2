"""The two TensorRTs: what they are called, what they can do, and what to install when they are not there."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dec_export.bundle.plan_header import PLAN_FORMATS
from dec_export.bundle.plans import PlanName
from dec_export.errors import EngineError
from dec_export.libraries import has_package, version_of_package


@dataclass(frozen=True)
class Flavour:
    """name: as in --engine. tag: the first bytes of a plan. minimum: the oldest version that dec-export drives.

    builds_without_gpu: TensorRT times kernels while it builds; TensorRT for RTX compiles them on the user's machine.
    """

    name: PlanName
    label: str
    module: str
    plan: str
    layers: str
    tag: bytes
    minimum: tuple[int, int]
    builds_without_gpu: bool
    remedy: str


TENSORRT = Flavour(
    "tensorrt",
    "TensorRT",
    "tensorrt",
    "model.plan",
    "model.layers.json",
    PLAN_FORMATS["tensorrt"].tag,
    (10, 9),
    False,
    "pip install 'dec-export[tensorrt]', with NVIDIA's package index as an extra one",
)
TENSORRT_RTX = Flavour(
    "tensorrt-rtx",
    "TensorRT for RTX",
    "tensorrt_rtx",
    "model.rtx.plan",
    "model.rtx.layers.json",
    PLAN_FORMATS["tensorrt-rtx"].tag,
    (1, 7),
    True,
    "pip install tensorrt-rtx",
)
FLAVOURS: dict[str, Flavour] = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}


def why_missing(flavour: Flavour) -> str | None:
    """A clause that says why a flavour cannot be used, or None when it can."""
    if not has_package(flavour.module):
        return f"{flavour.label} is not installed ({flavour.remedy})"
    if not has_package("polygraphy"):
        return "Polygraphy, which drives it, is not installed (pip install polygraphy)"
    version = version_of_package(flavour.module)
    found = re.match(r"(\d+)\.(\d+)", version or "")
    if found is None:
        return f"a package '{flavour.module}' is there, but its version, {version}, cannot be read"
    if (int(found[1]), int(found[2])) < flavour.minimum:
        needed = ".".join(map(str, flavour.minimum))
        return f"{flavour.label} {version} is older than {needed} ({flavour.remedy})"
    return None


def installed_version(flavour: Flavour) -> str:
    """The installed version; EngineError when there is none that can be used."""
    reason = why_missing(flavour)
    if reason:
        raise EngineError(f"The engine '{flavour.name}' cannot be used: {reason}.")
    return str(version_of_package(flavour.module))


def cuda_release(flavour: Flavour) -> str | None:
    """The CUDA release that the installed wheel is built for, as in its distribution's name: "13"."""
    from importlib import metadata

    names = metadata.packages_distributions().get(f"{flavour.module}_bindings", [])
    found = [match[1] for name in names if (match := re.search(r"[-_]cu(\d+)", name))]
    return found[0] if found else None


def _show_cuda_to_polygraphy() -> None:
    """Let it find the CUDA runtime that PyTorch's wheels bring: it looks along LD_LIBRARY_PATH, when it first runs."""
    folders = [str(Path(root) / "nvidia") for root in sys.path if (Path(root) / "nvidia").is_dir()]
    found = [str(file.parent) for folder in folders for file in Path(folder).glob("*/lib/libcudart.so.*")]
    known = os.environ.get("LD_LIBRARY_PATH", "")
    if found and found[0] not in known.split(os.pathsep):
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [known, found[0]]))


@dataclass(frozen=True)
class Backend:
    """TensorRT's own module, and Polygraphy's loaders for it."""

    trt: Any  # TensorRT ships no types, and neither does Polygraphy
    loaders: ModuleType

    def create_config(self, **options: Any) -> Any:
        """Polygraphy's loader of a builder configuration for this flavour."""
        if self.trt.__name__ == TENSORRT_RTX.module:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            return CreateConfigRTX(**options)
        return self.loaders.CreateConfig(**options)


def load_backend(flavour: Flavour) -> Backend:
    """Import a flavour and point Polygraphy at it, which it can be once in a process.

    Raises EngineError when the flavour is missing or broken, or Polygraphy drives the other one already.
    """
    installed_version(flavour)
    from polygraphy import config
    from polygraphy.logger import G_LOGGER

    # Polygraphy would print to stdout, where --json has one object and nothing else.
    G_LOGGER.use_python_logging_system = True
    _show_cuda_to_polygraphy()
    wants_rtx = flavour is TENSORRT_RTX
    if "polygraphy.backend.trt" in sys.modules and wants_rtx != config.USE_TENSORRT_RTX:
        raise EngineError(
            f"This process runs the other TensorRT already, and Polygraphy drives one in a process: use "
            f"'{flavour.name}' in a process of its own."
        )
    config.USE_TENSORRT_RTX = wants_rtx
    try:
        return Backend(import_module(flavour.module), import_module("polygraphy.backend.trt"))
    except (ImportError, OSError) as error:
        raise EngineError(f"{flavour.label} is installed but does not load ({error}): {flavour.remedy}.") from error
