"""The examination of this machine. Every library is examined separately, so that a broken one is reported."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from dec_export.engines.registry import all_availabilities, libraries
from dec_export.gpu import driver_version
from dec_export.libraries import version_of

_T = TypeVar("_T")
_BROKEN_PYTORCH = "unknown: PyTorch does not load"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Machine(_Frozen):
    """The hardware and system of a machine.

    memory_gib: the memory in GiB, or None where the system does not report it. gpu, nvidia_driver, cuda: descriptions.
    """

    python: str
    platform: str
    cpu_cores: int | None
    memory_gib: float | None
    gpu: str
    nvidia_driver: str
    cuda: str


class EngineState(_Frozen):
    """The state of one engine on this machine.

    works: an alias of can_run. can_build, can_run: whether this machine can build and run it. detail: the reason, and
    what to install.
    """

    works: bool
    name: str
    can_build: bool
    can_run: bool
    detail: str


class Plugin(_Frozen):
    """Whether this machine can build the TensorRT plugin, and the reason."""

    available: bool
    detail: str


class Photographs(_Frozen):
    """The number of photographs that can be used for proofs, and their origin."""

    count: int
    detail: str


class Examination(_Frozen):
    """The result of `dec-export doctor`, whose dump is the output of `--json`.

    libraries: the version of each distribution, or None when it is not installed. engines: all engines, in the order in
    which `auto` prefers them.
    """

    machine: Machine
    libraries: dict[str, str | None]
    onnxruntime_providers: tuple[str, ...]
    engines: tuple[EngineState, ...]
    plugin: Plugin
    photographs: Photographs


def examine_machine() -> Examination:
    """Find out what this machine has, which engines it can run, and what to install for the others."""
    return Examination(
        machine=Machine(
            python=platform.python_version(),
            platform=platform.platform(),
            cpu_cores=os.cpu_count(),
            memory_gib=_memory_gib(),
            gpu=_try(_gpu, _BROKEN_PYTORCH),
            nvidia_driver=driver_version() or "none",
            cuda=_try(_cuda, _BROKEN_PYTORCH),
        ),
        libraries={name: version_of(name) for name in (*libraries(), "scikit-image", "scikit-learn")},
        onnxruntime_providers=_try(_providers, ()),
        engines=_engines(),
        plugin=_plugin(),
        photographs=_photographs(),
    )


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _try(question: Callable[[], _T], otherwise: _T) -> _T:
    try:
        return question()
    except Exception:  # A missing or broken library can raise any error; the engine that needs it says why.
        return otherwise


def _gpu() -> str:
    from dec_export.engines.tensorrt.plan import dotted
    from dec_export.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        return "none that CUDA can use"
    return f"{gpu.name}, compute capability {dotted(gpu.compute_capability)}, {gpu.memory_bytes / 2**30:.0f} GiB"


def _cuda() -> str:
    import torch

    return f"{torch.version.cuda}, with PyTorch" if torch.version.cuda else "none: this PyTorch was built without it"


def _providers() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _engines() -> tuple[EngineState, ...]:
    return tuple(
        EngineState(
            works=found.can_run, name=name, can_build=found.can_build, can_run=found.can_run, detail=found.detail
        )
        for name, found in all_availabilities().items()
    )


def _plugin() -> Plugin:
    from dec_export.engines.tensorrt.plugin_use import plugin_support

    found = plugin_support()
    return Plugin(available=found.available, detail=found.detail)


def _photographs() -> Photographs:
    count = _try(_count_photographs, 0)
    detail = "from scikit-image and scikit-learn"
    if not count:
        detail = "none: pip install 'dec-export[demo]' for photographs, or name a folder with --images"
    return Photographs(count=count, detail=detail)


def _count_photographs() -> int:
    from dec_export.data.images import packaged_photographs

    return len(packaged_photographs())
