"""The two flavours of TensorRT: their names, their abilities, and how to install them."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dec_export.bundle.plan_header import PLAN_FORMATS
from dec_export.errors import EngineError
from dec_export.libraries import has_package, version_of_package

if TYPE_CHECKING:
    from dec_export.bundle.plans import PlanName


@dataclass(frozen=True)
class Flavour:
    """TensorRT or TensorRT for RTX.

    name: the name in --engine. label: the name in sentences. module: the Python module. plan, layers: the names of the
    engine's file and of the list of its layers. tag: the first bytes of a plan. minimum: the oldest version that
    dec-export supports. builds_without_gpu: whether a build needs no GPU; TensorRT times kernels in a build, and
    TensorRT for RTX compiles them on the machine that runs the engine. remedy: how to install it.
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
    """Return a clause that says why a flavour cannot be used, or None when it can."""
    if not has_package(flavour.module):
        return f"{flavour.label} is not installed ({flavour.remedy})"
    if not has_package("polygraphy"):
        return "Polygraphy, which calls TensorRT, is not installed (pip install polygraphy)"
    version = version_of_package(flavour.module)
    found = re.match(r"(\d+)\.(\d+)", version or "")
    if found is None:
        return f"a package '{flavour.module}' is there, but its version, {version}, cannot be read"
    if (int(found[1]), int(found[2])) < flavour.minimum:
        needed = ".".join(map(str, flavour.minimum))
        return f"{flavour.label} {version} is older than {needed} ({flavour.remedy})"
    return None


def installed_version(flavour: Flavour) -> str:
    """Return the installed version. Raises EngineError when none is installed that can be used."""
    reason = why_missing(flavour)
    if reason:
        raise EngineError(f"The engine '{flavour.name}' cannot be used: {reason}.")
    return str(version_of_package(flavour.module))


def cuda_release(flavour: Flavour) -> str | None:
    """Return the CUDA release of the installed wheel, which its distribution's name contains, such as "13"."""
    from importlib import metadata

    names = metadata.packages_distributions().get(f"{flavour.module}_bindings", [])
    found = [match[1] for name in names if (match := re.search(r"[-_]cu(\d+)", name))]
    return found[0] if found else None


def _show_cuda_to_polygraphy() -> None:
    """Let Polygraphy find the CUDA runtime of PyTorch's wheels.

    Polygraphy searches LD_LIBRARY_PATH when it first runs.
    """
    folders = [str(Path(root) / "nvidia") for root in sys.path if (Path(root) / "nvidia").is_dir()]
    found = [str(file.parent) for folder in folders for file in Path(folder).glob("*/lib/libcudart.so.*")]
    known = os.environ.get("LD_LIBRARY_PATH", "")
    if found and found[0] not in known.split(os.pathsep):
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [known, found[0]]))


@dataclass(frozen=True)
class Backend:
    """TensorRT's Python module, and Polygraphy's loaders for it."""

    trt: Any  # TensorRT has no types, and neither has Polygraphy.
    loaders: ModuleType

    def create_config(self, **options: Any) -> Any:
        """Return Polygraphy's loader of a builder configuration for this flavour."""
        if self.trt.__name__ == TENSORRT_RTX.module:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            return CreateConfigRTX(**options)
        return self.loaders.CreateConfig(**options)


def load_backend(flavour: Flavour) -> Backend:
    """Import a flavour and make Polygraphy use it, which is possible once in a process.

    Raises EngineError when the flavour is missing or broken, or when Polygraphy already uses the other one.
    """
    installed_version(flavour)
    from polygraphy import config
    from polygraphy.logger import G_LOGGER

    # Polygraphy prints to stdout, where --json allows only one object.
    G_LOGGER.use_python_logging_system = True
    _show_cuda_to_polygraphy()
    wants_rtx = flavour is TENSORRT_RTX
    if "polygraphy.backend.trt" in sys.modules and wants_rtx != config.USE_TENSORRT_RTX:
        raise EngineError(
            f"This process already uses the other TensorRT, and Polygraphy supports one in a process: use "
            f"'{flavour.name}' in another process."
        )
    config.USE_TENSORRT_RTX = wants_rtx
    try:
        return Backend(import_module(flavour.module), import_module("polygraphy.backend.trt"))
    except (ImportError, OSError) as error:
        raise EngineError(f"{flavour.label} is installed but does not load ({error}): {flavour.remedy}.") from error
