"""Self-supervised training of the digit model with Soft Equivariance Regularization (arXiv 2603.06693).

`self_supervised_plan` says which runs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from dec_export.data.digits import compose, source_digits

from . import loop
from .learner import Learner
from .loop import ParameterGroup, Steps, Trainer
from .losses import align, barlow_twins, cross_correlation, patch_nt_xent
from .map_errors import equivariance_errors, mean_error, named_map_error
from .probe import PROBE_STRENGTHS, classify, fit_probe
from .self_supervised_plan import STREAM, SerRun, SerSettings
from .views import GeometricViews, crops, geometric_views, photometric


class SerTrainer(Trainer):
    """A self-supervised run with its state; at step 0, the weights are random.

    DecExportError when the recipe's class token joins before the first block.
    """

    network_key = "learner"
    loss_digits = {"invariance_loss": 4, "equivariance_loss": 5}  # noqa: RUF012 - declared as ClassVar in Trainer

    def __init__(self, run: SerRun, settings: SerSettings) -> None:
        self.run, self.settings = run, settings
        self.learner = Learner(settings)
        groups = [ParameterGroup(list(self.learner.parameters()), settings.rate)]
        steps = Steps(settings.steps, settings.save_every, settings.validate_every)
        super().__init__(run.name, self.learner, groups, steps)
        self.digits = source_digits("train")

    @property
    def equivariance_weight(self) -> float:
        return self.run.weight

    @property
    def geometric(self) -> int:
        """How many images of a batch have geometric views: none, or at least two, which the loss can contrast."""
        return max(2, round(self.run.share * self.settings.batch)) if self.run.share else 0

    def losses_of_step(self) -> tuple[Tensor, Tensor]:
        return self.losses_of(*self.batch())

    def batch(self) -> tuple[Tensor, GeometricViews | None]:
        """The views of the next step: both views of the ordinary images, and the geometric views of the others.

        The ordinary views are (2 B, 3, H, W), with all first views before all second views. Every run has the same
        images. An image that is ordinary in two runs has the same views in both.
        """
        stream = (self.settings.seed, STREAM, self.step)
        pixels = compose(self.digits, self.settings.batch, stream).pixels
        images = torch.from_numpy(pixels).float()[:, None] / 255
        generators = [np.random.default_rng((*stream, i)) for i in range(1, 4)]
        ordinary = len(images) - self.geometric
        # Views are drawn for the whole batch, so that a run's draws do not depend on how many of them it keeps.
        views = torch.cat([photometric(crops(images, each), each)[:ordinary] for each in generators[:2]])
        if not self.geometric:
            return self._inputs(views), None
        generator = generators[2]
        grid = int(self.learner.backbone.patch_embed.grid_size[0])
        geometric, elements = geometric_views(images[ordinary:], grid, generator)
        one, other = (self._inputs(photometric(view, generator)) for view in geometric)
        return self._inputs(views), GeometricViews((one, other), elements)

    def losses_of(self, ordinary: Tensor, geometric: GeometricViews | None) -> tuple[Tensor, Tensor]:
        """The loss of Barlow Twins on the whole batch, and the equivariance loss on its geometric views."""
        embeddings = list(self.learner.embed(ordinary)[0].chunk(2))
        equivariance = torch.zeros(())
        if geometric is not None:
            found, maps = zip(*map(self.learner.embed, geometric.images), strict=True)
            embeddings = [torch.cat(pair) for pair in zip(embeddings, found, strict=True)]
            if self.run.weight:
                equivariance = self._equivariance(maps, geometric)
        projected = [self.learner.projector(z) for z in embeddings]
        return barlow_twins(cross_correlation(*projected), self.settings.redundancy), equivariance

    def _equivariance(self, maps: Sequence[Tensor], views: GeometricViews) -> Tensor:
        aligned = align(maps[0], views.elements, (maps[1].shape[-2], maps[1].shape[-1]))
        one, other = (self.learner.patch_projector(each.flatten(2).mT) for each in (aligned, maps[1]))
        return patch_nt_xent(one, other, self.settings.temperature)

    def _inputs(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) as the backbone expects them, (B, 3, H, W)."""
        preprocessing = self.learner.preprocessing
        mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
        return (images - mean) / std

    def validate(self) -> dict[str, float]:
        images = compose(source_digits("validation"), self.settings.validation_images, (self.settings.seed, 1))
        probe = fit_probe(self.learner, self.settings, PROBE_STRENGTHS[:1])
        scores, _ = classify(self.learner, probe, images, seed=2)
        maps = torch.from_numpy(self.learner.inputs_of(images)[: self.settings.map_images])
        error = mean_error(equivariance_errors(self.learner, maps), self.learner.mapped_block)
        return {**scores._asdict(), **named_map_error(error)}

    def settings_of_state(self) -> dict[str, object]:
        return {"run": asdict(self.run), "settings": self.settings.of_training()}


def train(run: SerRun, settings: SerSettings, work: Path, progress: Progress | None = None) -> SerTrainer:
    """Train one run, or what is left of it; its state stays in the folder `work`."""
    return loop.train(SerTrainer(run, settings), work, progress)
