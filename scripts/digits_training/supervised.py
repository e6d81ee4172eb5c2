"""Supervised training of the digit models: a backbone, and the runs that continue from its weights.

The runs that continue take equally many steps of equally many images: the plain backbone, the backbone with locally
scaled images, the same with the equivariance loss, and the one with DEC, which has that loss too. The difference
between the last two shows what DEC adds. Segmentation leaves out the run that has scaled images without the loss.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn

from dec_export.data.digits import STRENGTH, DigitImages, compose, source_digits
from dec_export.parity.measures.invariance import local_scale, local_scale_phi
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference, predict, preprocessing_of
from dec_export.reference.warp import Phi, warp

from . import loop
from .loop import ParameterGroup, Steps, Trainer
from .supervised_tasks import TASKS, Scores, SupervisedTask

# At the start the canonicalizers' scores are almost constant, so the warps are almost the identity. With the usual gain
# of the norms, a trained backbone would lose at once what it has learnt (from 85 % to 14 % of accuracy).
INITIAL_SCORE_GAIN = 0.1
CANONICALIZERS = "DEM."
VALIDATION_IMAGES = 400


@dataclass(frozen=True)
class Run:
    """One training.

    start: the name of the run whose backbone it starts from. canonicalize: whether the model has its canonicalizers.
    augment: whether half of each batch are locally scaled copies of the other half. consistency: the weight of the
    equivariance loss, which needs `augment`. backbone_rate, canonicalizer_rate: the highest learning rates.
    """

    name: str
    steps: int
    start: str | None = None
    canonicalize: bool = False
    augment: bool = False
    consistency: float = 0.0
    backbone_rate: float = 1e-3
    canonicalizer_rate: float = 2e-3


@dataclass(frozen=True)
class Settings:
    """What all runs share. `batch` is the number of images of a step, scaled copies included."""

    recipe: Recipe
    seed: int = 0
    batch: int = 128
    save_every: int = 50
    validate_every: int = 300
    test_images: int = 4000
    images_per_scale: int = 800

    @classmethod
    def usual(cls, recipe: Recipe, seed: int) -> Settings:
        """The settings with which the shipped model of the recipe's task was trained."""
        return cls(recipe, seed, **TASKS[recipe.task].sizes._asdict())


def plan(backbone_steps: int, steps: int, task: SupervisedTask) -> tuple[Run, ...]:
    """Every run of a task in order; the backbone is the first."""
    every = (
        Run("backbone", backbone_steps, backbone_rate=2e-3),
        Run("plain", steps, "backbone"),
        Run("augmented", steps, "backbone", augment=True),
        Run("consistent", steps, "backbone", augment=True, consistency=1.0),
        Run("dec", steps, "backbone", canonicalize=True, augment=True, consistency=1.0),
    )
    return tuple(run for run in every if run.name in task.runs)


class SupervisedTrainer(Trainer):
    """A supervised run with its state."""

    network_key = "model"
    loss_digits = {"task_loss": 5, "equivariance_loss": 5}  # noqa: RUF012 - declared as ClassVar in Trainer

    def __init__(self, run: Run, settings: Settings, model: DecModel) -> None:
        plain = [p for name, p in model.named_parameters() if not name.startswith(CANONICALIZERS)]
        groups = [ParameterGroup(plain, run.backbone_rate)]
        if run.canonicalize:
            groups.append(ParameterGroup(list(model.DEM.parameters()), run.canonicalizer_rate))
        super().__init__(run.name, model, groups, Steps(run.steps, settings.save_every, settings.validate_every))
        self.run, self.settings, self.model = run, settings, model
        self.task = TASKS[settings.recipe.task]
        self.digits = source_digits("train")
        self.preprocessing = preprocessing_of(settings.recipe)

    @property
    def equivariance_weight(self) -> float:
        return self.run.consistency

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that the run changes."""
        named = self.model.named_parameters()
        return [p for name, p in named if self.run.canonicalize or not name.startswith(CANONICALIZERS)]

    def logits(self, images: Tensor) -> Tensor:
        """The logits of images (B, 3, H, W), computed without canonicalizers if the run has none."""
        phis = self.model.DEM(images) if self.run.canonicalize else []
        return predict(self.model.recipe, self.model.backbone, self.model.decoder, images, phis)

    def losses_of_step(self) -> tuple[Tensor, Tensor]:
        images, labels, phi = self.batch()
        predicted = self.logits(images)
        task = F.cross_entropy(predicted, labels, self.task.class_weights())
        return task, self.task.equivariance_loss(phi, *predicted.chunk(2)) if phi else torch.zeros(())

    def batch(self) -> tuple[Tensor, Tensor, Phi | None]:
        """The images and labels of the next step.

        In a run with `augment`, the second half are copies of the first half, warped by the phi that is returned.
        """
        stream = (self.settings.seed, 0 if self.run.start is None else 1, self.step)
        count = self.settings.batch // 2 if self.run.augment else self.settings.batch
        digits = compose(self.digits, count, stream)
        images = torch.from_numpy(digits.inputs(self.preprocessing.mean, self.preprocessing.std))
        labels = self.task.labels(digits)
        if not self.run.augment:
            return images, labels, None
        phi = local_scale_phi(count, (*stream, 1), STRENGTH)
        copies = warp(phi, images.double()).float()
        return torch.cat([images, copies]), torch.cat([labels, self.task.scaled_labels(phi, labels)]), phi

    @torch.no_grad()
    def measure(self, images: DigitImages, seed: int, batch: int = 200) -> Scores:
        """The task's scores on images and their locally scaled copies; `seed` decides how the copies are scaled."""
        self.model.eval()
        inputs = images.inputs(self.preprocessing.mean, self.preprocessing.std)
        logits, scaled = (
            torch.cat([self.logits(part) for part in torch.split(torch.from_numpy(x), batch)])
            for x in (inputs, local_scale(inputs, seed, STRENGTH))
        )
        phi = local_scale_phi(len(images), seed, STRENGTH)
        return self.task.measure(logits, scaled, self.task.labels(images), phi)

    def validate(self) -> dict[str, float]:
        count = min(VALIDATION_IMAGES, self.settings.test_images)
        return self.task.scores_as_json(self.measure(compose(source_digits("validation"), count, 1), seed=2))

    def settings_of_state(self) -> dict[str, object]:
        return {"run": asdict(self.run), "seed": self.settings.seed, "batch": self.settings.batch}


def create_trainer(run: Run, settings: Settings, work: Path) -> SupervisedTrainer:
    """A trainer at step 0.

    Its weights are those of the backbone that the run starts from, whose state is in the folder `work`. A run that
    starts from none has random weights.
    """
    model = create_reference(settings.recipe, settings.seed)
    if run.start is not None:
        started = torch.load(work / f"{run.start}.pt", weights_only=True)["model"]
        model.load_state_dict(without_canonicalizers(started), strict=False)
    for network in model.DEM.networks:
        # The norm before the last pooling; torch does not type the members of a Sequential.
        nn.init.constant_(cast(nn.InstanceNorm2d, network[-3]).weight, INITIAL_SCORE_GAIN)
    return SupervisedTrainer(run, settings, model)


def train(run: Run, settings: Settings, work: Path, progress: Progress | None = None) -> SupervisedTrainer:
    """Train one run, or what is left of it; its state stays in the folder `work`."""
    return loop.train(create_trainer(run, settings, work), work, progress)


def without_canonicalizers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that a model without canonicalizers has."""
    return {key: value for key, value in state.items() if not key.startswith(CANONICALIZERS)}
