"""What a comparison finds. The dump of a `BenchReport` is what `dec-export bench --json` prints."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Frozen):
    """Processor, cores and vector instructions."""

    processor: str
    cores: int | None
    pytorch_instructions: str
    platform: str


class Peaks(_Frozen):
    """What the machine can do at most: floating-point operations, and bytes read and written, per second."""

    flops: float
    bytes: float


class GraphCost(_Frozen):
    """flops: of all convolutions and matrix products, two for each multiplication with addition.

    bytes: inputs and outputs of every node, as if each read and wrote memory; a runtime that fuses moves fewer.
    """

    flops: float
    bytes: float


class SubjectTiming(_Frozen):
    """Seconds of one run: median, and the quartiles, smallest and largest of `runs`."""

    median: float
    quartile_low: float
    quartile_high: float
    smallest: float
    largest: float
    runs: int
    images_per_second: float


class EngineTiming(SubjectTiming):
    """An engine's timing beside the others.

    ratio_to: for every other subject, its time over the engine's, the median over the rounds. overhead: what DEC costs
    as a share of the plain backbone's time on the same engine; None when that was not timed or there is no DEC.
    share_of_peak_flops: how much of what the machine can do the engine does.
    """

    ratio_to: dict[str, float]
    overhead: float | None
    share_of_peak_flops: float


class BatchTimings(_Frozen):
    """All subjects at one batch, and what the graph must compute there."""

    batch: int
    graph: GraphCost
    subjects: dict[str, EngineTiming | SubjectTiming]


class PeakMemory(_Frozen):
    """Bytes that a process holds before the first run, and at most while it runs the subject."""

    before: int
    peak: int


class BenchReport(_Frozen):
    """One comparison. peak_memory_bytes: of each subject at the batch `peak_memory_batch`, None where not told."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    recipe: str
    precision: str
    machine: Machine
    versions: dict[str, str]
    threads: int
    rounds: int
    peaks: Peaks
    batches: tuple[BatchTimings, ...]
    peak_memory_bytes: dict[str, PeakMemory | None]
    peak_memory_batch: int | None
