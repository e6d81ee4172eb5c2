"""Facts about a bundle and about this machine, as plain dictionaries."""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib import metadata, util
from math import prod
from typing import Any

import onnx

from dec_export.bundle import Bundle
from dec_export.images import packaged_photographs
from dec_export.recipe import Recipe, shipped_recipes

_LARGEST = 8


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """The manifest, and what the ONNX file holds: operators, initializers, precision, largest tensors."""
    proto = onnx.load(bundle.onnx_path)
    initializers = [_tensor(t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer]
    inner = [_value(value) for value in proto.graph.value_info]
    largest = sorted([*initializers, *inner], key=lambda t: -int(t["bytes"]))[:_LARGEST]
    return {
        **bundle.manifest.model_dump(mode="json"),
        "path": str(bundle.path),
        "nodes": len(proto.graph.node),
        "operators": dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        "functions": [f"{function.domain}::{function.name}" for function in proto.functions],
        "initializers": {
            "count": len(initializers),
            "bytes": sum(t["bytes"] for t in initializers),
            "dtypes": dict(Counter(t["dtype"] for t in initializers)),
        },
        "largest_tensors": largest,
    }


def _tensor(name: str, element_type: int, shape: list[int | str]) -> dict[str, Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    # A symbolic dimension is the batch; sizes are given for one sample.
    size = prod(d for d in shape if isinstance(d, int)) * dtype.itemsize
    return {"name": name, "dtype": dtype.name, "shape": shape, "bytes": size}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim]
    return _tensor(value.name, tensor.elem_type, shape)


def list_backbones() -> list[dict[str, Any]]:
    """Every shipped recipe, in short."""
    recipes = [Recipe.named(name) for name in shipped_recipes()]
    return [
        {
            "name": recipe.name,
            "task": recipe.task,
            "timm": recipe.backbone.timm,
            "family": recipe.backbone.family,
            "image_size": recipe.backbone.image_size,
            "coarse_resolution": list(recipe.canonicalizer.coarse_resolution),
        }
        for recipe in recipes
    ]


_LIBRARIES = ("dec-export", "torch", "timm", "onnx", "onnxscript", "numpy", "scikit-image", "scikit-learn")


def examine_machine() -> dict[str, Any]:
    """What this machine has, which engines would work, and what to install for those that would not."""
    photographs = len(packaged_photographs())
    return {
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "memory_gib": _memory_gib(),
            "gpu": _gpu(),
        },
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "engines": [_onnxruntime(), _torch(), _tensorrt()],
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


def _onnxruntime() -> dict[str, Any]:
    if util.find_spec("onnxruntime") is None:
        return {"name": "onnxruntime", "works": False, "detail": "not installed: pip install onnxruntime"}
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    return {
        "name": "onnxruntime",
        "works": "CPUExecutionProvider" in providers,
        "detail": f"{onnxruntime.__version__}, run on the CPU; providers in this build: {', '.join(providers)}",
    }


def _torch() -> dict[str, Any]:
    import torch

    return {"name": "torch", "works": True, "detail": f"{torch.__version__}, the reference itself, on the CPU"}


def _tensorrt() -> dict[str, Any]:
    from dec_plugins import plugin_support

    return {"name": "tensorrt", "works": False, "detail": f"not part of this version; {plugin_support().detail}"}
