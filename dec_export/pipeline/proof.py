"""The parts of a proof that `build` and `prove` share: images, references and running engines."""

from __future__ import annotations

from typing import NamedTuple

from dec_export.bundle.store import Bundle
from dec_export.data.images import ImageSet
from dec_export.data.preprocessing import Preprocessing
from dec_export.engines.base import Engine, RunOptions
from dec_export.engines.registry import engine_spec, load
from dec_export.parity.inputs import LabelledImages, RescaledImages
from dec_export.parity.measures.labelled import evaluation_images, labelled_images
from dec_export.parity.references import References, run_references
from dec_export.parity.rescaled import rescaled_images
from dec_export.parity.runs import ReferenceOptions
from dec_export.pipeline.options import ProofOptions
from dec_export.progress import step
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel


class ProofImages(NamedTuple):
    """The images of a proof; if the recipe has data of its own, labelled images, and images of changing scales."""

    images: ImageSet
    labelled: list[LabelledImages]
    rescaled: RescaledImages | None = None


def proof_images(recipe: Recipe, preprocessing: Preprocessing, proof: ProofOptions) -> ProofImages:
    """Return the images of a proof; images of a folder have no labels.

    Raises ImageError for a folder without images.
    """
    images = evaluation_images(recipe, preprocessing, proof.samples, proof.folder)
    if proof.folder:
        return ProofImages(images, [])
    return ProofImages(images, labelled_images(recipe, preprocessing), rescaled_images(recipe, preprocessing))


def make_references(
    bundle: Bundle, model: DecModel, found: ProofImages, threads: int | None, *, layers: bool = False
) -> References:
    """Run the bundle's reference `model` in float32, in float64 and in the formats of the bundle."""
    forms = bundle.manifest.forms
    with step("float32 and float64 references"):
        options = ReferenceOptions(forms, threads, found.labelled, layers, found.rescaled)
        return run_references(model, found.images, options)


def start_engine(bundle: Bundle, name: str, run: RunOptions) -> Engine:
    """Return an engine that shows its inner tensors. Raises EngineError when it cannot run here."""
    return load(bundle, name, options=run, inner=True)


def trusted_run_options(run: RunOptions, name: str) -> RunOptions:
    """Return the run options of an engine that was just built, whose code is trusted."""
    return RunOptions(run.threads, run.cpu_fallback and engine_spec(name).falls_back_to_cpu, allow_host_code=True)
