"""What this machine can run. Every library is looked at on its own, so that a broken one is an answer, not an end."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dec_export.gpu import driver_version
from dec_export.libraries import LIBRARIES, version_of


def examine_machine() -> dict[str, Any]:
    """What this machine has, which engines would work, and what to install for those that would not."""
    photographs = _try(_count_photographs, 0)
    return {
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "memory_gib": _memory_gib(),
            "gpu": _try(_gpu, "unknown: PyTorch does not load"),
            "nvidia_driver": driver_version() or "none",
            "cuda": _try(_cuda, "unknown: PyTorch does not load"),
        },
        "libraries": {name: version_of(name) for name in (*LIBRARIES, "scikit-image", "scikit-learn")},
        "onnxruntime_providers": _try(_providers, []),
        "engines": _engines(),
        "plugin": _plugin(),
        "photographs": {
            "count": photographs,
            "detail": "from scikit-image and scikit-learn"
            if photographs
            else "none: pip install 'dec-export[demo]' for real ones, or name a folder with --images",
        },
    }


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _try(question: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return question()
    except Exception:  # a missing or broken library fails in ways of its own; the engine that needs it says why
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


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _engines() -> list[dict[str, Any]]:
    from dec_export.engines.availability import all_availabilities

    return [{"works": found.can_run, **asdict(found)} for found in all_availabilities()]


def _plugin() -> dict[str, Any]:
    from dec_export.engines.tensorrt.plugin_use import plugin_support

    return asdict(plugin_support())


def _count_photographs() -> int:
    from dec_export.data.images import packaged_photographs

    return len(packaged_photographs())
