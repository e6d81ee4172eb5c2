"""`prove` compares one engine of a bundle with the float64 reference."""

from __future__ import annotations

from pathlib import Path

from dec_export.bundle.store import Bundle
from dec_export.engines.base import Engine, RunOptions
from dec_export.engines.registry import engine_spec
from dec_export.errors import DecExportError, EngineError
from dec_export.files import check_new_file, write_new_file
from dec_export.parity.report import Report
from dec_export.parity.run import run_parity
from dec_export.pipeline.options import ProofOptions
from dec_export.pipeline.proof import make_references, proof_images, start_engine
from dec_export.progress import step
from dec_export.report.html import render_report


def prove(
    bundle: Bundle,
    engine: str = "auto",
    *,
    run: RunOptions = RunOptions(),
    proof: ProofOptions = ProofOptions(),
    page: str | Path | None = None,
    force: bool = False,
) -> Report:
    """Compare an engine of a bundle with the float64 reference made from the bundle's own weights.

    run: how the engine is run. proof: the images, and whether inner tensors and layers are compared.
    page: the file for the report as an HTML page; an existing file is overwritten only with `force`.

    Raises DecExportError when the engine cannot run here, or when an option is wrong.
    """
    if engine == "none":
        raise EngineError("Parity needs an engine, found 'none': name one, or leave --engine out.")
    proof.check()
    if page is not None:
        _check_page(Path(page), bundle, force=force)
    # The engine is loaded first, so that an engine that cannot run fails at once.
    loaded = start_engine(bundle, engine, run)
    traced = _traced(bundle, loaded, run) if proof.trace or proof.layers else None
    with step("images and reference model"):
        images = proof_images(bundle.recipe, bundle.preprocessing, proof)
        model = bundle.reference()
    references = make_references(bundle, model, images, run.threads, layers=proof.layers)
    with step(f"parity of {loaded.name}"):
        report = run_parity(references, loaded, traced)
    if page is not None:
        with step("report"):
            text = render_report(bundle.manifest, [report], references)
            write_new_file(Path(page), text, force=force, option="--html")
    return report


def _check_page(page: Path, bundle: Bundle, *, force: bool) -> None:
    check_new_file(page, force=force, option="--html")
    if page.resolve().parent == bundle.path.resolve():
        raise DecExportError(f"'{page}' lies in the bundle, whose files have hashes: choose another --html.")


def _traced(bundle: Bundle, loaded: Engine, run: RunOptions) -> Engine | None:
    """Return the engine, or one that is built again to show its inner tensors if the engine does not show them."""
    builder = engine_spec(loaded.name).build
    if builder is None:
        return None
    with step(f"{loaded.name} engine that shows its inner tensors"):
        return builder.load_traced(bundle, run)
