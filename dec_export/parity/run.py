"""The comparison of an engine with the float64 reference and with the reference in the engine's precision."""

from __future__ import annotations

from dec_export.engines.base import Engine
from dec_export.names import LOGITS
from dec_export.parity import gate
from dec_export.parity.measures.base import Precision, ProofImages, Section
from dec_export.parity.measures.registry import MEASURES
from dec_export.parity.references import References
from dec_export.parity.report import SHOWN_IMAGES, Report, Shown
from dec_export.parity.runs import EngineRun


def run_parity(references: References, engine: Engine, traced: Engine | None = None) -> Report:
    """Run the engine on the references' images in small and in larger batches, and judge it by the gate.

    traced: an engine that is not judged, but shows inner tensors in place of `engine`. Raises EngineError when an
    engine returns no logits, or outputs of another shape than the reference's.
    """
    inputs, outputs, scaled = references.inputs, references.outputs, references.scaled
    shows = None if traced is None else EngineRun(traced, inputs, outputs, scaled)
    run = EngineRun(engine, inputs, outputs, scaled, shows)
    sections = tuple(measure.judge(references.of(type(measure)), run) for measure in MEASURES)
    return _report(references, run, sections)


def _report(references: References, run: EngineRun, sections: tuple[Section, ...]) -> Report:
    # Two measures may find the same fault of the reference.
    failures = tuple(dict.fromkeys(failure for section in sections for failure in section.failures()))
    images = references.inputs.images
    # Copies, because a view would keep the logits of every image.
    shown = Shown(*(found[LOGITS][:SHOWN_IMAGES].copy() for found in (run.outputs, run.scaled)))
    return Report(
        engine=run.engine.name,
        engine_details=run.engine.describe().as_dict(),
        task=references.recipe.task,
        precision=Precision(backbone=references.forms.precision, solver=references.forms.solver_precision),
        gate="fail" if failures else "pass",
        gate_rule=gate.RULE if references.recipe.discrete is None else f"{gate.RULE}; {gate.CHOICE_RULE}",
        failures=failures,
        samples=len(images),
        images=ProofImages(source=images.source, names=images.names),
        batch_sizes=tuple(run.batch_sizes),
        sections=sections,
        shown=shown,
    )
