"""What this machine can run. Every library is looked at on its own, so that a broken one is an answer, not an end."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

_LIBRARIES = (
    "dec-export",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "scikit-image",
    "scikit-learn",
)


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
        },
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "engines": [_engine("onnxruntime", _onnxruntime), _engine("torch", _torch), _tensorrt()],
        "photographs": {
            "count": photographs,
            "detail": "from scikit-image and scikit-learn"
            if photographs
            else "none: pip install 'dec-export[demo]' for real ones, or name a folder with --images",
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that PyTorch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _engine(name: str, describe: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "works": True, "detail": describe()}
    except Exception as error:  # a library that is missing or broken fails in ways of its own
        return {"name": name, "works": False, "detail": f"does not load ({error}): pip install {name}"}


def _try(question: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return question()
    except Exception:  # as above; the engine that needs the library says why
        return otherwise


def _count_photographs() -> int:
    from dec_export.images import packaged_photographs

    return len(packaged_photographs())


def _onnxruntime() -> str:
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    return f"{onnxruntime.__version__}, run on the CPU; providers in this build: {', '.join(providers)}"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, the reference itself, on the CPU"


def _tensorrt() -> dict[str, Any]:
    from dec_plugins import plugin_support

    return {"name": "tensorrt", "works": False, "detail": f"not part of this version; {plugin_support().detail}"}
