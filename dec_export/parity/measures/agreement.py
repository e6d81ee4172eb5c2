"""The measure of how often the engine and the reference choose the same class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dec_export.names import LOGITS
from dec_export.parity.measures.base import Measure, Section
from dec_export.parity.numbers import Number, number
from dec_export.parity.presentation import Row
from dec_export.parity.runs import EngineRun, ReferenceRuns
from dec_export.tasks.arrays import Array
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


@dataclass(frozen=True)
class ReferenceAgreement:
    """The float64 reference's logits, and the agreement of the float32 reference with them."""

    logits: Array
    fp32: float


class AgreementMeasure(Measure[ReferenceAgreement, Agreement]):
    """The measure that compares the indices of the largest logits."""

    section = Agreement

    def reference(self, runs: ReferenceRuns) -> ReferenceAgreement:
        """Return the agreement of the float32 reference."""
        truth = runs.outputs.fp64[LOGITS]
        return ReferenceAgreement(truth, top1_agreement(runs.outputs.fp32[LOGITS], truth))

    def judge(self, reference: ReferenceAgreement, run: EngineRun) -> Agreement:
        """Return the agreement of the engine."""
        return Agreement(
            top1_agreement=top1_agreement(run.outputs[LOGITS], reference.logits),
            top1_agreement_reference_fp32=reference.fp32,
        )
