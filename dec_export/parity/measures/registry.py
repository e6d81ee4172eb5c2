"""The list of all measures in the order of a report; a new measure needs one line here."""

from __future__ import annotations

from typing import Any

from dec_export.parity.measures.agreement import AgreementMeasure
from dec_export.parity.measures.amplification import AmplificationMeasure
from dec_export.parity.measures.base import Measure, Section
from dec_export.parity.measures.choice import ChoiceMeasure
from dec_export.parity.measures.consistency import ConsistencyMeasure
from dec_export.parity.measures.distances import DistancesMeasure
from dec_export.parity.measures.equivariance import EquivarianceMeasure
from dec_export.parity.measures.histogram import ErrorsMeasure
from dec_export.parity.measures.invariance import InvarianceMeasure
from dec_export.parity.measures.labelled import LabelledMeasure
from dec_export.parity.measures.local_scales import LocalScalesMeasure
from dec_export.parity.measures.residuals import ResidualsMeasure
from dec_export.parity.measures.scale_pairs import ScalePairsMeasure
from dec_export.parity.measures.trace import TraceMeasure

# Each measure keeps results of the reference in a type of its own, which no other code reads: hence Any.
MEASURES: tuple[Measure[Any, Section], ...] = (
    DistancesMeasure(),
    ChoiceMeasure(),
    AgreementMeasure(),
    InvarianceMeasure(),
    LabelledMeasure(),
    LocalScalesMeasure(),
    ConsistencyMeasure(),
    ScalePairsMeasure(),
    EquivarianceMeasure(),
    AmplificationMeasure(),
    ResidualsMeasure(),
    TraceMeasure(),
    ErrorsMeasure(),
)
