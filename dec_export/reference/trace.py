"""What the reference computes on the way to its logits, for finding where an engine leaves it."""

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
    """output: as the model's own. solves: every iterate of each layer's solver.

    finite: (B,), which samples `reference.finite` finds to be finite.
    features: what each block or stage puts out, by place, unwarped where the recipe says so, in the backbone's layout.
    """

    output: DecOutput
    solves: list[AndersonResult]
    finite: Tensor
    features: dict[int, Tensor]


def trace(model: DecModel, image: Tensor) -> Trace:
    """The model on an image (B, 3, H, W), with its inner values; without gradients worth following."""
    recipe, backbone = model.recipe, model.backbone
    solves, phis = [], []
    for network, f in zip(model.DEM.networks, model.DEM.step_functions(image), strict=True):
        start = Phi.ones(image.shape[0], network.coarse_resolution, image).flatten()
        solves.append(anderson(f, start, model.DEM.options))
        phis.append(Phi.unflatten(f(solves[-1].value), network.coarse_resolution))
    places = range(stage_count(recipe, backbone))
    with stage_outputs(recipe.backbone, backbone, places) as features:
        output = model.answer(image, phis)
    return Trace(output, solves, finite_samples(image, phis), features)
