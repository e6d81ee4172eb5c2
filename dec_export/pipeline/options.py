"""What can be asked of the verbs, in groups that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dec_export.bundle.plans import BuildOptions
from dec_export.engines.base import RunOptions
from dec_export.errors import DecExportError
from dec_export.formats import Format
from dec_export.forms import Forms, Solver
from dec_export.recipe.model import Recipe
from dec_export.reference.precision import check_precision


@dataclass(frozen=True)
class WeightOptions:
    """Where a model's weights come from.

    checkpoint: a file in the published layout, safetensors or a PyTorch state dict; None means those that ship with the
    recipe, else timm's pretrained backbone, else random ones. strict: refuse weights that are not from a checkpoint.
    seed: of random weights, at least 0 and below 2^63.
    """

    checkpoint: str | Path | None = None
    strict: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raise DecExportError for a seed out of range."""
        if not 0 <= self.seed < 2**63:
            raise DecExportError(f"seed must be at least 0 and below 2^63, found {self.seed}.")


@dataclass(frozen=True)
class EngineOptions:
    """Which engines are built and proved.

    names: "auto" is what this machine can, "none" proves nothing; what is left out, and why, is in the manifest.
    options: of TensorRT engines; None means the default ones, and lets an engine that cannot be built be left out.
    timing_cache: the folder of TensorRT's timings; None means the user's cache folder. run: how the engines are run for
    the proof; the code of those that were just built is always allowed.
    """

    names: Sequence[str] = ("auto",)
    options: BuildOptions | None = None
    timing_cache: str | Path | None = None
    run: RunOptions = RunOptions()


@dataclass(frozen=True)
class ProofOptions:
    """What an engine is proved on, and how deeply.

    images: folder of JPEG and PNG files; None means packaged photographs, else synthetic images. samples: how many.
    trace: compare every inner tensor of a TensorRT engine, too, which is built anew to show them; other engines are
    always traced. layers: measure how the feature map of every block follows turns, flips and changes of scale of the
    image. Both are for `prove`.
    """

    images: str | Path | None = None
    samples: int = 8
    trace: bool = False
    layers: bool = False

    @property
    def folder(self) -> Path | None:
        """`images` as a path."""
        return None if self.images is None else Path(self.images)

    def check(self) -> None:
        """Raise DecExportError for too few samples."""
        if self.samples < 1:
            raise DecExportError(f"samples must be at least 1, found {self.samples}.")


def parse_forms(
    solver: str = "unroll",
    precision: str = "fp32",
    solver_precision: str = "fp32",
    *,
    tap: int | None = None,
    expose_phi: bool = False,
) -> Forms:
    """The Forms of these words. Raises DecExportError for a word that does not exist."""
    if solver not in list(Solver):
        raise DecExportError(f"Unknown solver '{solver}', expected one of {', '.join(Solver)}.")
    check_precision(precision, solver_precision)
    return Forms(Solver(solver), Format(precision), Format(solver_precision), tap, expose_phi)


def check_forms(recipe: Recipe, forms: Forms) -> None:
    """Raise DecExportError for what only a canonicalizer has, asked of a model without one."""
    asked = {
        "--solver": forms.solver != Solver.UNROLL,
        "--solver-precision": forms.solver_precision != Format.FP32,
        "--expose-phi": forms.expose_phi,
    }
    if recipe.canonicalizer is None and any(asked.values()):
        option = next(name for name, value in asked.items() if value)
        raise DecExportError(f"The recipe '{recipe.name}' has no canonicalizer, which {option} is for: leave it out.")
