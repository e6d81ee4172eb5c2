"""The options of `build` and `prove`, in groups."""

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
    """The source of a model's weights.

    checkpoint: a file in a published layout, safetensors or a PyTorch state dict, or the folder of a snapshot; None
    means the weights that ship with the recipe, else timm's pretrained backbone, else random weights. strict: whether
    weights that are not from a checkpoint are refused. seed: the seed of random weights, at least 0 and below 2^63.
    canonicalizers: the file of the canonicalizers if they are not in the checkpoint; `NAME_surrogate.pth` beside
    `NAME.pth` is found without it.
    """

    checkpoint: str | Path | None = None
    strict: bool = False
    seed: int = 0
    canonicalizers: str | Path | None = None

    def check(self) -> None:
        """Raise DecExportError for a seed that is out of range."""
        if not 0 <= self.seed < 2**63:
            raise DecExportError(f"seed must be at least 0 and below 2^63, found {self.seed}.")


@dataclass(frozen=True)
class EngineOptions:
    """The engines that are built and proved.

    names: the names of the engines; "auto" means those that this machine can build, and "none" means that no engine is
    run. The manifest says which engines were left out, and why. options: the options of TensorRT engines; None means
    the defaults, and then an engine that cannot be built is left out. timing_cache: the folder of TensorRT's timings;
    None means the user's cache folder. run: how the engines are run for the proof; the code in an engine that was just
    built is always allowed.
    """

    names: Sequence[str] = ("auto",)
    options: BuildOptions | None = None
    timing_cache: str | Path | None = None
    run: RunOptions = RunOptions()


@dataclass(frozen=True)
class ProofOptions:
    """The images of a proof, and the comparisons that it makes.

    images: a folder of JPEG and PNG files; None means packaged photographs, else synthetic images. Files named
    `NAME_scale_0.7.jpg`, also in a folder for each class, show one scene at several scales (`data.scale_pairs`).
    samples: the number of images, which may be exceeded so that no scene is cut. trace: whether every inner tensor of
    a TensorRT engine is compared, for which the engine is built again; other engines are always traced. layers: whether
    the equivariance of every block's feature map to rotation, flip and scale is measured. Only `prove` has trace and
    layers.
    """

    images: str | Path | None = None
    samples: int = 8
    trace: bool = False
    layers: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of images as a path, or None."""
        return None if self.images is None else Path(self.images)

    def check(self) -> None:
        """Raise DecExportError when there are fewer than 1 sample."""
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
    """Return the Forms that these words name. Raises DecExportError for an unknown word."""
    if solver not in list(Solver):
        raise DecExportError(f"Unknown solver '{solver}', expected one of {', '.join(Solver)}.")
    check_precision(precision, solver_precision)
    return Forms(Solver(solver), Format(precision), Format(solver_precision), tap, expose_phi)


def check_forms(recipe: Recipe, forms: Forms) -> None:
    """Raise DecExportError for an option that the recipe's canonicalizer has no use for."""
    asked = {
        "--solver": forms.solver != Solver.UNROLL,
        "--solver-precision": forms.solver_precision != Format.FP32,
        "--expose-phi": forms.expose_phi,
    }
    option = next((name for name, value in asked.items() if value), None)
    if recipe.canonicalizer is None and option is not None:
        raise DecExportError(f"The recipe '{recipe.name}' has no canonicalizer, which {option} is for: leave it out.")
    if recipe.discrete is not None and option not in (None, "--expose-phi"):
        raise DecExportError(
            f"The recipe '{recipe.name}' has a discrete canonicalizer, which runs no solver and chooses in float32: "
            f"leave {option} out."
        )
    dec = recipe.deep_equilibrium
    if dec is not None and not dec.iterates and forms.solver is not Solver.UNROLL:
        raise DecExportError(
            f"The recipe '{recipe.name}' has max_iter {dec.max_iter}, with which the solver mixes nothing and takes "
            f"one step, so that --solver {forms.solver} has no iterations to run: leave it out."
        )
