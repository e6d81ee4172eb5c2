"""The options of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dec_export.engines.base import RunOptions
from dec_export.errors import DataError
from dec_export.evaluation.layouts.base import DataOptions
from dec_export.files import check_new_file

DEFAULT_BATCH = 32


@dataclass(frozen=True)
class EvaluationOptions:
    """How a bundle is evaluated.

    engine: the engine to evaluate, or "auto". baselines: what it is compared with: "torch" is the float32 reference,
    and a path is another bundle. run: how engines are run. data: how the data set is read.
    limit: the number of images; they are taken evenly from the whole data set. None takes all.
    strengths: the strengths of local scaling. corruptions, severities: the corruptions, and how strong each is, from 1
    to 5. seed: the seed of all changes of images.
    batch: the number of images that an engine runs at once. workers: the threads that decode images.
    strict: whether an image that cannot be decoded ends the evaluation. resume: whether to continue an evaluation of
    the same images that was interrupted. journal: the folder that keeps finished parts; None means the user's cache.
    max_drop: limits of how much worse than its first baseline the engine may be, as "top1=0.5" (docs/evaluate.md).
    page: the file for the report as an HTML page; an existing file is overwritten only with `force`.
    cluster: the Ray cluster that computes: "local" starts one on this machine, and "auto" or HOST:PORT joins a running
    one; None computes in this process.
    """

    engine: str = "auto"
    baselines: Sequence[str] = ("torch",)
    run: RunOptions = RunOptions()
    data: DataOptions = DataOptions()
    limit: int | None = None
    strengths: Sequence[float] = ()
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = (1, 2, 3, 4, 5)
    seed: int = 0
    batch: int = DEFAULT_BATCH
    workers: int = 2
    strict: bool = False
    resume: bool = False
    journal: Path | None = None
    max_drop: Sequence[str] = ()
    page: Path | None = None
    force: bool = False
    cluster: str | None = None

    @property
    def engine_run(self) -> RunOptions:
        """How engines are run; an engine on a cluster uses one thread, unless the user names a number."""
        return self.run if self.cluster is None or self.run.threads else replace(self.run, threads=1)

    def check(self) -> None:
        """Raise DataError for a number that is out of range, and DecExportError when the page cannot be written."""
        for name, value, least in (("limit", self.limit, 1), ("batch", self.batch, 1), ("workers", self.workers, 1)):
            if value is not None and value < least:
                raise DataError(f"{name} must be at least {least}, found {value}.")
        wrong = next((strength for strength in self.strengths if not 0 < strength <= 1), None)
        if wrong is not None:
            raise DataError(f"A strength of local scaling must be above 0 and at most 1, found {wrong:g}.")
        if not set(self.severities) <= {1, 2, 3, 4, 5} or not self.severities:
            raise DataError(f"severities must be from 1 to 5, found {list(self.severities)}.")
        if self.max_drop and not self.baselines:
            raise DataError("A limit compares the engine with its first baseline, and there is none: name a baseline.")
        if self.page is not None:
            check_new_file(self.page, force=self.force, option="--html")
