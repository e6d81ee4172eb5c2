"""Train the shipped digit models and their baselines; write checkpoints, the training log and the table of results.

    python scripts/train_digits.py [--recipe digits_segmentation] [--out models] [--work FOLDER] [--runs plain ...]
    python scripts/train_digits.py --ser WEIGHT [--share SHARE]    # self-supervised, with and without SER

A run is interrupted and resumed at will: every batch depends on the seed and the number of the step alone, so that a
resumed run ends with the same weights, bit for bit. A backbone is trained first; from its weights go on, for equally
many steps of equally many images: the plain backbone, the backbone with locally scaled images, the same with the
equivariance loss, and the one with DEC, which has that loss too. What DEC adds is the difference of the last two.
Segmentation does without the second of these.

Classification: the class of the labelled digit, among two others. Loss: cross-entropy of images and of their locally
scaled copies, and the symmetric divergence between the two predictions.

Segmentation: the class of every pixel, background included. Loss: cross-entropy, in which background counts 0.3, and
the divergence, at every pixel, between the scaled copy's prediction and the prediction that is scaled likewise.

Soft Equivariance Regularization: `ser_digits.py` says what is trained. WEIGHT 0 makes the plain run alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from resumable import Resumable, Stateful, finish, progress_bar
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file
from ser_digits import SHARE, SerSettings, run_all
from ser_digits import tables as ser_tables
from torch import Tensor, nn

from dec_export.data.digits import CLASSES, STRENGTH, DigitImages, SourceDigits, compose, source_digits
from dec_export.data.images import Preprocessing
from dec_export.errors import DecExportError
from dec_export.libraries import installed_versions
from dec_export.parity.measures.invariance import equivariance_error, local_scale, local_scale_phi
from dec_export.parity.measures.labelled import SCALES
from dec_export.recipe.model import Recipe
from dec_export.reference.model import DecModel, create_reference, predict, preprocessing_of
from dec_export.reference.warp import Phi, warp, warp_labels
from dec_export.reference.weights.fitting import published_state_dict
from dec_export.report.tables import table
from dec_export.tasks.measures import mean_iou

# At the start the canonicalizers' scores are almost constant, hence the warps almost the identity: a trained backbone
# would otherwise lose at once what it has learnt (from 85 % to 14 % of accuracy, with the norms' usual ones).
INITIAL_SCORE_GAIN = 0.1
WARM_UP = 0.1
WEIGHT_DECAY = 0.05
MAX_GRADIENT = 1.0
BACKGROUND_WEIGHT = 0.3
CANONICALIZERS = "DEM."


@dataclass(frozen=True)
class Run:
    """One training.

    start: the run whose backbone it starts from. augment: half of each batch are locally scaled copies of the other.
    consistency: weight of the equivariance loss. A loss on scaled copies needs `augment`.
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
    """What all runs share. batch: images of a step, scaled copies included."""

    recipe: Recipe
    seed: int = 0
    batch: int = 128
    save_every: int = 50
    validate_every: int = 300
    test_images: int = 4000
    images_per_scale: int = 800


def plan(backbone_steps: int, steps: int, task: Task | None = None) -> tuple[Run, ...]:
    """Every run of a task, classification unless another is given, in order."""
    every = (
        Run("backbone", backbone_steps, backbone_rate=2e-3),
        Run("plain", steps, "backbone"),
        Run("augmented", steps, "backbone", augment=True),
        Run("consistent", steps, "backbone", augment=True, consistency=1.0),
        Run("dec", steps, "backbone", canonicalize=True, augment=True, consistency=1.0),
    )
    return tuple(run for run in every if run.name in (task or TASKS["classification"]).runs)


# --- one run ---------------------------------------------------------------------------------------------------------


@dataclass
class Trainer(Resumable):
    """A run with its state: `step` steps are done. `log` has an entry for every `save_every` steps."""

    run: Run
    settings: Settings
    digits: SourceDigits
    preprocessing: Preprocessing
    model: DecModel
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)

    @property
    def task(self) -> Task:
        return TASKS[self.settings.recipe.task]

    def logits(self, images: Tensor) -> Tensor:
        return logits(self.model, images, self.run.canonicalize)

    def advance(self) -> None:
        """One step of the optimiser."""
        began = time.process_time()
        self.model.train()
        images, labels, phi = self._batch()
        predicted = self.logits(images)
        task = F.cross_entropy(predicted, labels, self.task.class_weights())
        between = self.task.inequality(phi, *predicted.chunk(2)) if phi else torch.zeros(())
        self.optimiser.zero_grad()
        (task + self.run.consistency * between).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained_parameters(self.model, self.run), MAX_GRADIENT)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.process_time() - began
        self.losses.append((task.item(), between.item()))

    def _batch(self) -> tuple[Tensor, Tensor, Phi | None]:
        """Images and labels of the next step; with `augment` the second half are copies of the first, warped by phi."""
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

    def note(self, validation: dict[str, Any] | None) -> None:
        """Append the mean losses since the last entry to the log."""
        task, between = np.mean(self.losses, axis=0)
        entry = {"step": self.step, "task_loss": round(float(task), 5), "equivariance_loss": round(float(between), 5)}
        self.log.append({**entry, "cpu_seconds": round(self.seconds, 1), **(validation or {})})
        self.losses.clear()

    def _parts(self) -> dict[str, Stateful]:
        return {"model": self.model, "optimiser": self.optimiser, "schedule": self.schedule}

    def _settings(self) -> dict[str, Any]:
        """What the weights depend on, beside the recipe."""
        return {"run": asdict(self.run), "seed": self.settings.seed, "batch": self.settings.batch}


def create_trainer(run: Run, settings: Settings, work: Path) -> Trainer:
    """The run's trainer: from its saved state, else from the backbone that it starts from, else from random weights."""
    model = create_reference(settings.recipe, settings.seed)
    if run.start is not None:
        started = torch.load(work / f"{run.start}.pt", weights_only=True)["model"]
        model.load_state_dict(without_canonicalizers(started), strict=False)
    for network in model.DEM.networks:
        norm: Any = network[-3]
        nn.init.constant_(norm.weight, INITIAL_SCORE_GAIN)
    plain = [p for name, p in model.named_parameters() if not name.startswith(CANONICALIZERS)]
    groups: list[dict[str, Any]] = [{"params": plain, "lr": run.backbone_rate}]
    if run.canonicalize:
        groups.append({"params": list(model.DEM.parameters()), "lr": run.canonicalizer_rate})
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=run.steps + 1, pct_start=WARM_UP)
    preprocessing = preprocessing_of(settings.recipe)
    trainer = Trainer(run, settings, source_digits("train"), preprocessing, model, optimiser, schedule)
    if (work / f"{run.name}.pt").exists():
        trainer.load(work / f"{run.name}.pt")
    return trainer


def train(run: Run, settings: Settings, work: Path, progress: Progress | None = None) -> Trainer:
    """Do what is left of a run; its state stays in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    trainer = create_trainer(run, settings, work)
    every = (settings.save_every, settings.validate_every)
    finish(trainer, run.name, run.steps, work / f"{run.name}.pt", every, lambda: validate(trainer), progress)
    return trainer


def without_canonicalizers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model without DEC needs of a state dict."""
    return {key: value for key, value in state.items() if not key.startswith(CANONICALIZERS)}


def trained_parameters(model: DecModel, run: Run) -> list[nn.Parameter]:
    """The weights that a run changes."""
    return [p for name, p in model.named_parameters() if run.canonicalize or not name.startswith(CANONICALIZERS)]


def logits(model: DecModel, images: Tensor, canonicalize: bool) -> Tensor:
    """Logits of the model, or of what is left of it without its canonicalizers."""
    phis = model.DEM(images) if canonicalize else []
    return predict(model.recipe, model.backbone, model.decoder, images, phis)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """Half the symmetric Kullback-Leibler divergence of softmaxes of logits (B, classes, ...), mean over all else."""
    log_a, log_b = a.log_softmax(dim=1), b.log_softmax(dim=1)
    return ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(dim=1).mean() / 2


# --- tasks -----------------------------------------------------------------------------------------------------------


class Task(ABC):
    """What depends on whether an image has one label or every pixel its own.

    score, distance: keys of `measure` and, in `titles`, what they are called. runs: names of the runs that are made.
    sizes: of batches and tests. steps: of the backbone and of each later run. every: whether all digits have the scale
    that is tested.
    """

    score: ClassVar[str]
    distance: ClassVar[str]
    titles: ClassVar[tuple[str, str]]
    runs: ClassVar[tuple[str, ...]]
    sizes: ClassVar[dict[str, int]] = {}
    steps: ClassVar[tuple[int, int]] = (2000, 2000)
    every: ClassVar[bool] = False

    @abstractmethod
    def labels(self, images: DigitImages) -> Tensor:
        """Labels int64 (B,) or (B, H, W)."""

    @abstractmethod
    def scaled_labels(self, phi: Phi, labels: Tensor) -> Tensor:
        """Labels of the copies warped by phi."""

    @abstractmethod
    def inequality(self, phi: Phi, logits: Tensor, logits_scaled: Tensor) -> Tensor:
        """The equivariance loss, from the logits of images and of their copies warped by phi."""

    @abstractmethod
    def measure(self, trainer: Trainer, images: DigitImages, seed: int) -> dict[str, float]:
        """The score, the score on locally scaled copies, and how far predictions are from invariant or equivariant."""

    def class_weights(self) -> Tensor | None:
        """Weights of the classes in the cross-entropy."""
        return None


class Classification(Task):
    score, distance, titles = "accuracy", "inv_e", ("accuracy", "InvE")
    runs = ("backbone", "plain", "augmented", "consistent", "dec")

    def labels(self, images: DigitImages) -> Tensor:
        return torch.from_numpy(images.labels)

    def scaled_labels(self, phi: Phi, labels: Tensor) -> Tensor:  # noqa: ARG002
        return labels

    def inequality(self, phi: Phi, logits: Tensor, logits_scaled: Tensor) -> Tensor:  # noqa: ARG002
        return divergence(logits, logits_scaled)

    def measure(self, trainer: Trainer, images: DigitImages, seed: int) -> dict[str, float]:
        here, there = (values.softmax(dim=1) for values in predict_scaled(trainer, images, seed))
        labels = self.labels(images)
        return {
            "accuracy": _accuracy(here, labels),
            "accuracy_locally_scaled": _accuracy(there, labels),
            "inv_e": round(float((here - there).norm(dim=1).mean()), 4),
        }


class Segmentation(Task):
    score, distance, titles = "mean_iou", "eq_e", ("mIoU", "EqE")
    runs = ("backbone", "plain", "consistent", "dec")
    sizes: ClassVar[dict[str, int]] = {"batch": 64, "test_images": 1000, "images_per_scale": 400}
    steps = (1100, 800)
    every = True

    def labels(self, images: DigitImages) -> Tensor:
        return torch.from_numpy(images.masks.astype(np.int64))

    def scaled_labels(self, phi: Phi, labels: Tensor) -> Tensor:
        return warp_labels(phi, labels)

    def inequality(self, phi: Phi, logits: Tensor, logits_scaled: Tensor) -> Tensor:
        return divergence(warp(Phi(phi.x.float(), phi.y.float()), logits), logits_scaled)

    def measure(self, trainer: Trainer, images: DigitImages, seed: int) -> dict[str, float]:
        here, there = predict_scaled(trainer, images, seed)
        phi, labels = local_scale_phi(len(images), seed, STRENGTH), self.labels(images)
        return {
            "mean_iou": _mean_iou(here, labels),
            "mean_iou_locally_scaled": _mean_iou(there, self.scaled_labels(phi, labels)),
            "eq_e": round(equivariance_error(here.numpy(), there.numpy(), phi), 4),
        }

    def class_weights(self) -> Tensor:
        # Nine tenths of the pixels are background.
        return torch.tensor([*[1.0] * CLASSES, BACKGROUND_WEIGHT])


TASKS: dict[str, Task] = {"classification": Classification(), "segmentation": Segmentation()}


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return round(float((probabilities.argmax(dim=1) == labels).float().mean()), 4)


def _mean_iou(logits: Tensor, labels: Tensor) -> float:
    return round(mean_iou(logits.argmax(dim=1).numpy(), labels.numpy(), CLASSES + 1), 4)


# --- what was learnt -------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_scaled(trainer: Trainer, images: DigitImages, seed: int, batch: int = 200) -> list[Tensor]:
    """Logits of images, and of their locally scaled copies."""
    trainer.model.eval()
    inputs = images.inputs(trainer.preprocessing.mean, trainer.preprocessing.std)
    both = (torch.from_numpy(x) for x in (inputs, local_scale(inputs, seed, STRENGTH)))
    return [torch.cat([trainer.logits(part) for part in torch.split(x, batch)]) for x in both]


def validate(trainer: Trainer) -> dict[str, Any]:
    """The task's measures on digits that are neither trained on nor tested on."""
    count = min(400, trainer.settings.test_images)
    return {"validation": trainer.task.measure(trainer, compose(source_digits("validation"), count, 1), seed=2)}


def test(trainer: Trainer) -> dict[str, Any]:
    """Every metric on the test digits, each of which is the labelled digit equally often at every scale."""
    task, settings, digits = trainer.task, trainer.settings, source_digits("test")
    measured: dict[str, Any] = {**task.measure(trainer, compose(digits, settings.test_images, 3), seed=4)}
    for i, scale in enumerate(SCALES):
        images = compose(digits, settings.images_per_scale, (5, i), scale=scale, every=task.every)
        at_scale = task.measure(trainer, images, seed=6)
        for name in (task.score, f"{task.score}_locally_scaled"):
            measured.setdefault(f"{name}_at_scale", {})[str(scale)] = at_scale[name]
    return measured


# --- files -----------------------------------------------------------------------------------------------------------


def write(trainers: Sequence[Trainer], out: Path) -> dict[str, Any]:
    """Write checkpoints, and NAME.json: settings, log and results of every run. Returns what the file holds."""
    (out / "baselines").mkdir(parents=True, exist_ok=True)
    settings = trainers[0].settings
    name = settings.recipe.name
    for trainer in trainers:
        weights = published_state_dict(trainer.model)
        if trainer.run.canonicalize:
            save_file(weights, out / f"{name}.safetensors")
        elif trainer.run.start is not None:
            save_file(without_canonicalizers(weights), out / "baselines" / f"{name}_{trainer.run.name}.safetensors")
    report = {
        "recipe": settings.recipe.name,
        "task": settings.recipe.task,
        "settings": {k: v for k, v in asdict(settings).items() if k != "recipe"},
        "versions": installed_versions(("torch", "timm", "numpy", "scikit-learn")),
        "runs": {trainer.run.name: describe(trainer) for trainer in trainers},
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def describe(trainer: Trainer) -> dict[str, Any]:
    """The run as the report tells it."""
    return {
        **asdict(trainer.run),
        "parameters": sum(p.numel() for p in trained_parameters(trainer.model, trainer.run)),
        "images": trainer.step * trainer.settings.batch,
        "cpu_seconds": round(trainer.seconds, 1),
        "test": test(trainer),
        "log": trainer.log,
    }


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """The results, one row for each run; scores in %."""
    task = TASKS[report["task"]]
    tests = {name: run["test"] for name, run in report["runs"].items()}
    score, distance = task.titles
    keys = (task.score, f"{task.score}_locally_scaled")
    main = ((n, *(_percent(t[key]) for key in keys), t[task.distance]) for n, t in tests.items())
    yield table("Test digits", ("run", score, f"{score}, locally scaled", distance), main)
    for key, title in zip(keys, ("at scale", "locally scaled as well, at scale"), strict=True):
        at = {name: list(t[f"{key}_at_scale"].values()) for name, t in tests.items()}
        rows = ((n, *map(_percent, values), f"{np.var(values):.5f}") for n, values in at.items())
        yield table(f"{score}, {title}", ("run", *map(str, SCALES), "variance"), rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def main() -> None:
    options = _parser().parse_args()
    # The order in which threads add up is not fixed; one thread makes a run repeatable.
    torch.set_num_threads(1)
    with progress_bar() as progress:
        try:
            found = _supervised(options, progress) if options.ser is None else _self_supervised(options, progress)
        except DecExportError as error:
            sys.exit(str(error))
    Console().print(*found, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="a shipped recipe, by name; digits without it, digits_ser with --ser")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder of checkpoints and log")
    parser.add_argument("--work", type=Path, help="folder of unfinished runs; build/RECIPE without it")
    parser.add_argument(
        "--runs", nargs="+", help="some of the runs, after the backbone; without it all, and then the results"
    )
    parser.add_argument("--backbone-steps", type=int)
    parser.add_argument("--steps", type=int, help="of every run; of those that start from the backbone, without --ser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ser", type=float, metavar="WEIGHT", help="of the equivariance loss of SER; 0 does without")
    parser.add_argument("--share", type=float, default=SHARE, help="of each batch, the part that SER turns and scales")
    return parser


def _supervised(options: argparse.Namespace, progress: Progress) -> Sequence[Table]:
    """Make the supervised runs; the tables of their results, none where only some runs were asked for."""
    recipe = Recipe.named(options.recipe or "digits")
    task = TASKS[recipe.task]
    settings = Settings(recipe, seed=options.seed, **task.sizes)
    work = options.work or Path("build") / recipe.name
    steps = [given or usual for given, usual in zip((options.backbone_steps, options.steps), task.steps, strict=True)]
    wanted = options.runs and {"backbone", *options.runs}
    chosen = [run for run in plan(steps[0], steps[1], task) if not wanted or run.name in wanted]
    trainers = [train(run, settings, work, progress) for run in chosen]
    return [] if options.runs else list(tables(write(trainers, options.out)))


def _self_supervised(options: argparse.Namespace, progress: Progress) -> Sequence[Table]:
    """Make the runs of SER; the tables of their results."""
    settings = SerSettings(Recipe.named(options.recipe or "digits_ser"), seed=options.seed)
    settings = settings if options.steps is None else replace(settings, steps=options.steps)
    work = options.work or Path("build") / settings.recipe.name
    return list(ser_tables(run_all(settings, options.ser, options.share, options.out, work, progress)))


if __name__ == "__main__":
    main()
