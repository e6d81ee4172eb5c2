"""What the rest of dec-export knows of an engine: its specification. Nothing else asks for an engine by its name."""

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
    """can_build: a bundle can be made for the engine here. can_run: it can be run here. detail: why, or why not.

    What needs no building, as ONNX Runtime, can be built wherever it runs.
    """

    can_build: bool
    can_run: bool
    detail: str


def works(detail: str) -> Availability:
    """The answer of a probe whose engine can be built and run."""
    return Availability(True, True, detail)


def unavailable(detail: str) -> Availability:
    """The answer of a probe whose engine can be neither built nor run."""
    return Availability(False, False, detail)


class Builder(Protocol):
    """Makes the file that an engine runs, where an engine needs another one than the ONNX file.

    label: the engine's name in sentences. keeps_timings: whether building measures times that are worth keeping.
    """

    @property
    def label(self) -> str: ...

    @property
    def keeps_timings(self) -> bool: ...

    def why_unsupported(self, options: BuildOptions) -> str | None:
        """A clause that names an option which this builder does not have, or None."""
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
        """Write the engine of an ONNX file into `folder`; EngineError, and no file, when that fails."""
        ...

    def load_traced(self, bundle: Bundle, options: RunOptions) -> Engine:
        """The bundle's engine, built anew with all inner tensors as outputs; it leaves no file behind."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """One engine.

    name: as in `--engine`. summary: one line of help, without a full stop. preference: the engine with the smallest
    number is the best that a machine can run. needs_gpu: it runs on a GPU alone. automatic: `auto` may choose it.
    falls_back_to_cpu: with `RunOptions.cpu_fallback` it runs on the CPU where its GPU does not start.

    probe: looks at this machine, without loading a model; what it raises means that the library is broken.
    package: the package that is imported to run it, so that the remedy can name what to install again.
    libraries: distributions beyond `libraries.LIBRARIES` whose versions are to be reported.

    load: the engine of a bundle. load_onnx: the engine of another ONNX file with the bundle's input, built like the
    bundle's own if it must be built; None when the engine does not run ONNX files. build: what makes its file; None
    when it runs the bundle as it is.

    standalone: Python code that defines `run(images)` from `path`, an ONNX file, and `threads`, as a server without
    dec-export would do it; the memory of such a process is measured. Empty when there is no such thing.
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
