"""The measure of how often the engine and the reference choose the same class."""

from __future__ import annotations

from typing import ClassVar

from dec_export.names import LOGITS
from dec_export.parity.measures.base import Measure, Section
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Row
from dec_export.parity.runs import EngineRun, ReferenceRuns
from dec_export.tasks.measures import top1_agreement


class Agreement(Section):
    """The share of samples, or of pixels, for which the engine and the float32 reference choose float64's class."""

    name: ClassVar[str] = "agreement"

    top1_agreement: Number
    top1_agreement_reference_fp32: Number

    def rows(self) -> list[Row]:
        """Return both shares."""
        return [Row("top-1 agreement", self.text)]

    @property
    def text(self) -> str:
        """Both shares in words."""
        single = number(self.top1_agreement_reference_fp32, ".1%")
        return f"{number(self.top1_agreement, '.1%')} (float32 reference: {single})"


class AgreementMeasure(Measure[float, Agreement]):
    """The measure that compares the indices of the largest logits."""

    section = Agreement

    def reference(self, runs: ReferenceRuns) -> float:
        """Return the agreement of the float32 reference."""
        return top1_agreement(runs.outputs.fp32[LOGITS], runs.outputs.fp64[LOGITS])

    def judge(self, reference: float, run: EngineRun) -> Agreement:
        """Return the agreement of the engine."""
        return Agreement(
            top1_agreement=top1_agreement(run.outputs[LOGITS], run.truth.fp64[LOGITS]),
            top1_agreement_reference_fp32=reference,
        )
