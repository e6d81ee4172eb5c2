"""What is timed: a bundle's engines, and what they are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dec_export.bundle.store import Bundle
from dec_export.engines.base import CPU_ENGINES, CUDA_ENGINE, ENGINES, TENSORRT_ENGINES, Engine, check_engine_name, load
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.engines.tensorrt.build import build_plan
from dec_export.engines.tensorrt.engine import TensorRTEngine
from dec_export.engines.tensorrt.flavours import FLAVOURS
from dec_export.errors import DecExportError
from dec_export.formats import Format
from dec_export.gpu import find_gpu
from dec_export.onnx_export.tracing import export_plain, save
from dec_export.reference.optim import with_optim

# eager: the reference as published. compile: torch.compile of it. plain: the backbone without DEC, on each engine.
# optim: canonicalization by optimisation. train, optim-train: one training step of either, eager.
BASELINES = ("eager", "compile", "plain", "optim", "train", "optim-train")
Images = NDArray[np.float32]
Run = Callable[[Images], object]


def subject(bundle: Bundle, name: str, threads: int, folder: Path) -> Run:
    """The function that a name stands for; `folder` holds what must be built for it.

    Names are those of engines and of BASELINES, with `plain-ENGINE` for the backbone alone.
    Raises DecExportError for another name, and what the engine raises when it cannot run here.
    """
    if name.startswith("plain-"):
        return _plain(bundle, name.removeprefix("plain-"), threads, folder)
    if name in ENGINES and name != "torch":
        return load(bundle, name, threads=None if name in TENSORRT_ENGINES else threads)
    if name in ("eager", "torch"):
        return load(bundle, "torch", threads=threads)
    if name not in BASELINES:
        raise DecExportError(f"Unknown baseline '{name}', expected one of {', '.join(BASELINES)}.")
    torch.set_num_threads(threads)
    model = bundle.reference()
    if name.startswith("optim"):
        model = with_optim(model)
    if name.endswith("train"):
        return _training(model)
    return _inference(torch.compile(model) if name == "compile" else model)


def _inference(model: Callable[[Tensor], object]) -> Run:
    def run(images: Images) -> object:
        with torch.no_grad():
            return model(torch.from_numpy(images))

    return run


def _training(model: nn.Module) -> Run:
    """Loss, gradients of every parameter; no optimiser step, which would be the same for all."""
    model.train()

    def run(images: Images) -> object:
        model.zero_grad(set_to_none=True)
        logits = model(torch.from_numpy(images)).logits
        labels = torch.zeros((len(images), *logits.shape[2:]), dtype=torch.long)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return run


def _plain(bundle: Bundle, engine: str, threads: int, folder: Path) -> Engine:
    path = folder / "plain.onnx"
    if not path.exists():
        save(export_plain(bundle.reference(), Format(bundle.manifest.precision)), path)
    if engine in (CPU_ENGINES[0], CUDA_ENGINE):
        bfloat16 = bundle.manifest.precision == "bf16"
        return OnnxRuntimeEngine(path, threads=threads, cuda=engine == CUDA_ENGINE, bfloat16=bfloat16)
    if engine not in TENSORRT_ENGINES:
        raise DecExportError(f"The plain backbone cannot be run on '{engine}': name one of {', '.join(ENGINES)}.")
    flavour, built = FLAVOURS[engine], bundle.manifest.plans[engine]  # type: ignore[index]
    entry = build_plan(flavour, path, folder, built.options, gpu=find_gpu())
    size = bundle.recipe.backbone.image_size
    return TensorRTEngine(folder / entry.file, flavour, entry, size, ["logits"], allow_host_code=True)


def names_of(engines: Sequence[str], baselines: Sequence[str]) -> list[str]:
    """Names of subjects: the engines, and the baselines, with "plain" for each engine."""
    names = list(dict.fromkeys(engines))
    for name in names:
        check_engine_name(name)
    for baseline in dict.fromkeys(baselines):
        if baseline not in BASELINES:
            raise DecExportError(f"Unknown baseline '{baseline}', expected one of {', '.join(BASELINES)}, or none.")
        plain = [f"plain-{engine}" for engine in dict.fromkeys(engines) if engine != "torch"]
        names += plain if baseline == "plain" else [baseline]
    return names


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what baselines need; it vanishes with the context."""
    return tempfile.TemporaryDirectory(prefix="dec-export-bench-")
