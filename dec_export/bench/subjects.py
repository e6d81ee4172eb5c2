"""The subjects that are timed: a bundle's engines, and the baselines with which they are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dec_export.engines.base import RunOptions
from dec_export.engines.registry import engine_names, engine_spec, engine_specs, load
from dec_export.engines.spec import EngineSpec
from dec_export.engines.torch import TorchEngine
from dec_export.errors import DecExportError
from dec_export.formats import Format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from dec_export.bundle.store import Bundle

# The argument holds images (N, 3, H, W) float32, and the result is not used.
Run = Callable[["NDArray[np.float32]"], object]

_PLAIN_FILE = "plain.onnx"
_PREFIX = "plain-"


@dataclass(frozen=True)
class Baseline:
    """A baseline with which engines are compared.

    summary: one line of help. prepare: the function that makes the baseline from a bundle, a number of threads, and the
    file of NAME=FILE or None; it is None for the baseline that exists once for each engine, as `plain-ENGINE`.
    takes_file: whether the baseline may be named as NAME=FILE, with the file of its weights.
    """

    name: str
    summary: str
    prepare: Callable[[Bundle, int, Path | None], Run] | None
    takes_file: bool = False


def subject(bundle: Bundle, name: str, threads: int, folder: Path) -> Run:
    """Return the function that runs the named subject; files that it needs are written to `folder`.

    The names are those of engines and of BASELINES; `plain-ENGINE` is the backbone without DEC on an engine, and
    `optim=FILE` the baseline with the weights of a checkpoint.
    Raises DecExportError for another name, and the error of an engine that cannot run here.
    """
    if name in engine_names():
        return load(bundle, name, options=RunOptions(threads))
    if name.startswith(_PREFIX):
        return _plain(bundle, engine_spec(name.removeprefix(_PREFIX)), threads, folder)
    prepare, file = _baseline(name).prepare, name.partition("=")[2]
    if prepare is None:
        raise DecExportError(f"The baseline '{name}' exists once for each engine: name it as {name}-ENGINE.")
    return prepare(bundle, threads, Path(file) if file else None)


def names_of(engines: Sequence[str], baselines: Sequence[str]) -> list[str]:
    """Return the names of the subjects: engines, and baselines, with "plain" for each engine that runs ONNX files.

    Raises DecExportError for other names.
    """
    specs = [engine_spec(name) for name in dict.fromkeys(engines)]
    names = [spec.name for spec in specs]
    for name in dict.fromkeys(baselines):
        each = [f"{_PREFIX}{spec.name}" for spec in specs if spec.load_onnx is not None]
        names += each if _baseline(name).prepare is None else [name]
    return names


def standalone(bundle: Bundle, name: str, folder: Path) -> tuple[str, Path] | None:
    """Return code that runs a subject without dec-export, and the ONNX file that it reads, or None without such code.

    The code defines `run(images)`, as `EngineSpec.standalone` says. folder: the folder of the files of `subject`.
    """
    engine = name.removeprefix(_PREFIX)
    code = engine_spec(engine).standalone if engine in engine_names() else ""
    if not code:
        return None
    return code, bundle.onnx_path if name == engine else folder / _PLAIN_FILE


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder for the files of the baselines, which is deleted when its context ends."""
    return tempfile.TemporaryDirectory(prefix="dec-export-bench-")


def _baseline(name: str) -> Baseline:
    known, separator, file = name.partition("=")
    if known not in BASELINES:
        raise DecExportError(f"Unknown baseline '{name}', expected one of {', '.join(BASELINES)}, or none.")
    baseline = BASELINES[known]
    if separator and not (baseline.takes_file and file):
        able = ", ".join(f"{other.name}=FILE" for other in BASELINES.values() if other.takes_file)
        raise DecExportError(f"The baseline '{name}' cannot be named with a file: name {known}, or one of {able}.")
    return baseline


def _plain(bundle: Bundle, spec: EngineSpec, threads: int, folder: Path) -> Run:
    if spec.load_onnx is None:
        able = ", ".join(other.name for other in engine_specs() if other.load_onnx is not None)
        raise DecExportError(f"The plain backbone cannot be run on '{spec.name}': name one of {able}.")
    from dec_export.onnx_export.tracing import export_plain, save

    path = folder / _PLAIN_FILE
    if not path.exists():
        save(export_plain(bundle.reference(), Format(bundle.manifest.precision)), path)
    return spec.load_onnx(bundle, path, RunOptions(threads))


# A baseline that takes no file is given None.
def _eager(bundle: Bundle, threads: int, _: Path | None) -> Run:
    return TorchEngine(bundle.reference(), tap=bundle.tap, threads=threads)


def _compiled(bundle: Bundle, threads: int, _: Path | None) -> Run:
    import torch

    return _inference(torch.compile(bundle.reference()), threads)


def _optimised(bundle: Bundle, threads: int, file: Path | None) -> Run:
    from dec_export.reference.optim import with_optim

    return _inference(with_optim(bundle.reference(), checkpoint=file), threads)


def _trained(bundle: Bundle, threads: int, _: Path | None) -> Run:
    return _training(bundle.reference(), threads)


def _optimised_and_trained(bundle: Bundle, threads: int, file: Path | None) -> Run:
    from dec_export.reference.optim import with_optim

    return _training(with_optim(bundle.reference(), checkpoint=file), threads)


def _inference(model: Callable[[Tensor], object], threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)

    def run(images: NDArray[np.float32]) -> object:
        with torch.no_grad():
            return model(torch.from_numpy(images))

    return run


def _training(model: nn.Module, threads: int) -> Run:
    """Compute the loss and the gradients of every parameter, without the optimiser's step, which all would share."""
    import torch

    torch.set_num_threads(threads)
    model.train()

    def run(images: NDArray[np.float32]) -> object:
        model.zero_grad(set_to_none=True)
        logits = model(torch.from_numpy(images)).logits
        labels = torch.zeros((len(images), *logits.shape[2:]), dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return run


_ALL = (
    Baseline("eager", "the published model in eager PyTorch", _eager),
    Baseline("compile", "the published model in torch.compile", _compiled),
    Baseline("plain", "the backbone without DEC, on every engine that is timed", None),
    Baseline(
        "optim",
        "canonicalization by optimisation; optim=FILE takes the weights of a checkpoint",
        _optimised,
        takes_file=True,
    ),
    Baseline("train", "one training step of the published model in eager PyTorch", _trained),
    Baseline(
        "optim-train",
        "one training step with canonicalization by optimisation",
        _optimised_and_trained,
        takes_file=True,
    ),
)
BASELINES = {baseline.name: baseline for baseline in _ALL}
