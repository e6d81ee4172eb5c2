"""The inner values of the reference model, which show where an engine begins to differ from it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dec_export.reference.anderson import AndersonResult, anderson
from dec_export.reference.backbones.insertion import stage_outputs
from dec_export.reference.backbones.stages import stage_count
from dec_export.reference.finite import finite_samples
from dec_export.reference.model import DecModel, DecOutput
from dec_export.reference.warp import Phi


class Trace(NamedTuple):
    """The output of a model with its inner values.

    output: the output of the model.
    solves: the result of each layer's solver, with every iterate; there is none without a solver.
    finite: (B,) bool; which samples `reference.finite` finds to be finite.
    features: the output of each block or stage by its number, in the backbone's layout; it is unwarped at the places
    that the recipe names.
    """

    output: DecOutput
    solves: list[AndersonResult]
    finite: Tensor
    features: dict[int, Tensor]


def trace(model: DecModel, image: Tensor, phis: list[Phi] | None = None) -> Trace:
    """Run the model on images (B, 3, H, W) and return its inner values; their gradients have no use.

    phis: the phis by which the model warps, if they are known; None means those that its canonicalizers find.
    """
    recipe, backbone = model.recipe, model.backbone
    solves, found = ([], phis) if phis is not None else _solved(model, image)
    places = range(stage_count(recipe, backbone))
    with stage_outputs(recipe.backbone, backbone, places) as features:
        output = model.answer(image, found)
    return Trace(output, solves, finite_samples(image, found), features)


def _solved(model: DecModel, image: Tensor) -> tuple[list[AndersonResult], list[Phi]]:
    """Return the solver of every layer with its iterates, and the phis."""
    if not model.DEM.networks:
        return [], model.DEM(image)
    solves, phis = [], []
    for network, f in zip(model.DEM.networks, model.DEM.step_functions(image), strict=True):
        start = Phi.ones(image.shape[0], network.coarse_resolution, image).flatten()
        solves.append(anderson(f, start, model.DEM.options))
        phis.append(Phi.unflatten(f(solves[-1].value), network.coarse_resolution))
    return solves, phis
