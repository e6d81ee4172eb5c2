"""All measures, in the order of a report. This is the only list of them: a new measure is one line here."""

from __future__ import annotations

from typing import Any

from dec_export.parity.measures.agreement import AgreementMeasure
from dec_export.parity.measures.amplification import AmplificationMeasure
from dec_export.parity.measures.base import Measure, Section
from dec_export.parity.measures.distances import DistancesMeasure
from dec_export.parity.measures.equivariance import EquivarianceMeasure
from dec_export.parity.measures.histogram import ErrorsMeasure
from dec_export.parity.measures.invariance import InvarianceMeasure
from dec_export.parity.measures.labelled import LabelledMeasure
from dec_export.parity.measures.residuals import ResidualsMeasure
from dec_export.parity.measures.trace import TraceMeasure

# Each measure has a type of its own for what it keeps of the reference, which only itself reads.
MEASURES: tuple[Measure[Any, Section], ...] = (
    DistancesMeasure(),
    AgreementMeasure(),
    InvarianceMeasure(),
    LabelledMeasure(),
    EquivarianceMeasure(),
    AmplificationMeasure(),
    ResidualsMeasure(),
    TraceMeasure(),
    ErrorsMeasure(),
)
