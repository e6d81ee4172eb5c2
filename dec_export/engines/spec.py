"""The specification of an engine, through which the rest of dec-export uses it; no other module tests its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dec_export.gpu import Gpu

if TYPE_CHECKING:
    from pathlib import Path

    from dec_export.bundle.plans import BuildOptions, PlanEntry
    from dec_export.bundle.store import Bundle
    from dec_export.engines.base import Engine, RunOptions, Shown


@dataclass(frozen=True)
class Availability:
    """The availability of an engine on this machine.

    can_build: whether a bundle can be made for the engine here. can_run: whether it can be run here. detail: the
    reason. An engine that needs no building, such as ONNX Runtime, counts as one that can be built wherever it runs.
    """

    can_build: bool
    can_run: bool
    detail: str


def works(detail: str) -> Availability:
    """Return the availability of an engine that can be built and run."""
    return Availability(True, True, detail)


def unavailable(detail: str) -> Availability:
    """Return the availability of an engine that can be neither built nor run."""
    return Availability(False, False, detail)


class Builder(Protocol):
    """A builder makes the file of an engine that does not run the ONNX file.

    label: the engine's name in sentences. keeps_timings: whether a build measures timings that can be kept.
    """

    @property
    def label(self) -> str: ...

    @property
    def keeps_timings(self) -> bool: ...

    def why_unsupported(self, options: BuildOptions) -> str | None:
        """Return a clause that names an option which this builder does not support, or None."""
        ...

    def build(
        self,
        onnx_path: Path,
        folder: Path,
        options: BuildOptions,
        *,
        gpu: Gpu | None,
        timing_folder: Path | None = None,
    ) -> PlanEntry:
        """Write the engine of an ONNX file into `folder`. Raises EngineError, and leaves no file, when that fails."""
        ...

    def load_traced(self, bundle: Bundle, options: RunOptions) -> Engine:
        """Build the bundle's engine again with all inner tensors as outputs, and load it. No file remains."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """The specification of one engine.

    name: the name in `--engine`. summary: one line of help, without a full stop. preference: the rank of the engine;
    `auto` prefers the smallest number. needs_gpu: whether it runs only on a GPU. automatic: whether `auto` may choose
    it. falls_back_to_cpu: whether it runs on the CPU with `RunOptions.cpu_fallback` when its GPU does not start.

    probe: the function that examines this machine without a model; any error that it raises means that the library is
    broken. package: the package that is imported to run the engine; an error names it as the package to install again.
    libraries: the distributions beyond `libraries.LIBRARIES` whose versions are reported.

    load: the function that loads the engine of a bundle. load_onnx: the function that loads another ONNX file with the
    bundle's input, and builds an engine for it with the bundle's options if necessary; None when the engine does not
    run ONNX files. build: the builder of the engine's file; None when the engine runs the ONNX file or the weights.

    standalone: Python code that defines `run(images)` from an ONNX file `path` and a number `threads` without
    dec-export, like a server; the memory of this process is measured. It is empty when there is no such code.
    """

    name: str
    summary: str
    preference: int
    needs_gpu: bool
    package: str
    probe: Callable[[Gpu | None], Availability]
    load: Callable[[Bundle, RunOptions, Shown], Engine]
    load_onnx: Callable[[Bundle, Path, RunOptions], Engine] | None = None
    build: Builder | None = None
    automatic: bool = True
    falls_back_to_cpu: bool = False
    libraries: tuple[str, ...] = ()
    standalone: str = ""
