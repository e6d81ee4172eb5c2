"""The results of a comparison. `dec-export bench --json` prints the dump of a `BenchReport`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Frozen):
    """The processor, the number of cores and the vector instructions of a machine."""

    processor: str
    cores: int | None
    pytorch_instructions: str
    platform: str


class Peaks(_Frozen):
    """The highest speed of the machine: floating-point operations, and bytes read and written, per second."""

    flops: float
    bytes: float


class GraphCost(_Frozen):
    """The cost of one run of a graph.

    flops: the operations of all convolutions and matrix products; a multiplication with an addition counts as two.
    bytes: the sizes of the inputs and outputs of every node; a runtime that fuses nodes moves fewer bytes.
    """

    flops: float
    bytes: float


class SubjectTiming(_Frozen):
    """The seconds of one run: the median, the quartiles, the smallest and the largest of `runs` values."""

    median: float
    quartile_low: float
    quartile_high: float
    smallest: float
    largest: float
    runs: int
    images_per_second: float


class EngineTiming(SubjectTiming):
    """An engine's timing, compared with that of the other subjects.

    ratio_to: for every other subject, its time divided by the engine's, as the median over the rounds. overhead: the
    additional time of DEC divided by the plain backbone's time on the same engine; None when that backbone was not
    timed or the model has no DEC. share_of_peak_flops: the engine's speed divided by the highest speed of the machine.
    """

    ratio_to: dict[str, float]
    overhead: float | None
    share_of_peak_flops: float


class BatchTimings(_Frozen):
    """The timings of all subjects at one batch, and the cost of the graph at this batch."""

    batch: int
    graph: GraphCost
    subjects: dict[str, EngineTiming | SubjectTiming]


class PeakMemory(_Frozen):
    """The bytes that a process holds before the first run, and the most that it holds while it runs the subject."""

    before: int
    peak: int


class BenchReport(_Frozen):
    """One comparison.

    peak_memory_bytes: the memory of each subject at the batch `peak_memory_batch`; None where the system does not
    report it.
    """

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
