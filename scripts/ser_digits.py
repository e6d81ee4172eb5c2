"""Self-supervised training of the digit model with Soft Equivariance Regularization, and what it is compared with.

Three runs of equally many steps on the same images, from the same weights:

- *plain*: two ordinary views of every image, and the invariance loss;
- *views*: a share of each batch has geometric views instead, as for *ser*, and the invariance loss;
- *ser*: the same as *views*, with the equivariance loss on that share.

Labels are used by the linear probe alone: multinomial logistic regression on the frozen embeddings. It becomes the head
of the checkpoints, so that they classify.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from resumable import Facts, Resumable, Stateful, finish
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file
from ser_method import (
    GeometricViews,
    align,
    barlow_twins,
    crops,
    cross_correlation,
    embedding_projector,
    geometric_views,
    patch_nt_xent,
    patch_projector,
    photometric,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dec_export.data.digits import CLASSES, STRENGTH, DigitImages, SourceDigits, compose, source_digits
from dec_export.data.images import Preprocessing
from dec_export.errors import DecExportError
from dec_export.libraries import installed_versions
from dec_export.parity.measures.invariance import local_scale
from dec_export.recipe.model import Recipe
from dec_export.reference.backbones.late_class_token import LateClassToken, sincos2d
from dec_export.reference.groups import ACTIONS, Similarity
from dec_export.reference.model import create_reference, preprocessing_of
from dec_export.reference.weights.fitting import published_state_dict
from dec_export.report.tables import table

# Published: 1 % of 2,048 images. Of a batch of 64 that is one image, with no other to contrast it with; this is eight.
SHARE = 0.125
# Of the learned positions at the start. From timm's own, a noise of 0.02, learning took three times as many steps, and
# fixed waves of amplitude 1 stay in the map, whatever the equivariance loss does.
POSITION_AMPLITUDE = 0.3
WARM_UP = 0.1
WEIGHT_DECAY = 0.05
MAX_GRADIENT = 1.0
# Inverse strengths of the probe's regularisation; validation digits choose. The log has the first alone, to save time.
PROBE_STRENGTHS = (1.0, 10.0, 100.0)
# Of the composed images' random numbers; the supervised runs have 0 and 1.
_STREAM = 2


@dataclass(frozen=True)
class SerRun:
    """One training. share: of each batch, the part with geometric views. weight: of their equivariance loss."""

    name: str
    share: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class SerSettings:
    """What all runs share.

    batch: images of a step, each of which is seen twice. redundancy: weight of the off-diagonal correlations.
    temperature: of the equivariance loss. rate: the highest learning rate. hidden, patch_hidden: widths of the
    projectors. probe_images, validation_images, test_images, map_images: how many the probe learns from, chooses its
    regularisation with and is tested with, and how many show the error of equivariance.
    """

    recipe: Recipe
    steps: int = 1600
    seed: int = 0
    batch: int = 64
    redundancy: float = 0.0051
    temperature: float = 0.4
    rate: float = 7e-4
    hidden: int = 512
    patch_hidden: int = 128
    save_every: int = 50
    validate_every: int = 400
    probe_images: int = 6000
    validation_images: int = 1000
    test_images: int = 4000
    map_images: int = 400

    def of_training(self) -> Facts:
        """The settings on which the weights depend."""
        names = ("steps", "seed", "batch", "redundancy", "temperature", "rate", "hidden", "patch_hidden")
        return {"recipe": self.recipe.model_dump(mode="json"), **{name: getattr(self, name) for name in names}}


def plan(weight: float, share: float) -> tuple[SerRun, ...]:
    """Every run, in order; without a weight, the plain one alone."""
    if not weight >= 0 or not 0 < share <= 1:
        raise DecExportError(f"--ser takes a weight from 0 on and --share a part of a batch, found {weight}, {share}.")
    return (SerRun("plain"), SerRun("views", share), SerRun("ser", share, weight))[: 3 if weight else 1]


# --- one run ---------------------------------------------------------------------------------------------------------


class Learner(nn.Module):
    """The recipe's model, whose head is not trained, with the projectors of both losses."""

    def __init__(self, settings: SerSettings) -> None:
        super().__init__()
        self.model = create_reference(settings.recipe, settings.seed)
        backbone = self.model.backbone
        if not isinstance(backbone, LateClassToken) or backbone.insert_at == 0:
            raise DecExportError(
                f"--ser needs a recipe whose cls_insert_layer is 1 at least, which '{settings.recipe.name}' lacks."
            )
        width = backbone.cls_token.shape[-1]
        _start_positions(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.projector = embedding_projector(width, settings.hidden)
            self.patch_projector = patch_projector(width, settings.patch_hidden)

    @property
    def backbone(self) -> LateClassToken:
        found = self.model.backbone
        assert isinstance(found, LateClassToken)
        return found

    def blocks(self, images: Tensor) -> list[Tensor]:
        """What every block puts out for images (B, 3, H, W): maps of patches (B, C, h, w), without class tokens."""
        return [_as_map(tokens, self.backbone.grid_of(images)) for tokens in self.backbone.block_outputs(images)]

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding (B, C), which is the normalised class token, and the map f1 (B, C, h, w) before it joins."""
        backbone = self.backbone
        outputs = backbone.block_outputs(images)
        embedding: Tensor = backbone.norm(outputs[-1])[:, 0]
        return embedding, _as_map(outputs[backbone.insert_at - 1], backbone.grid_of(images))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads, (B, C * last_blocks)."""
        backbone = self.backbone
        kept = backbone.block_outputs(images)[-backbone.last_blocks :]
        return torch.cat([backbone.norm(tokens)[:, 0] for tokens in kept], dim=1)


def _start_positions(backbone: LateClassToken) -> None:
    """Let learned positions start as waves, of which patches can tell their places from the first step on."""
    if backbone.pos_embed.requires_grad:
        with torch.no_grad():
            waves = sincos2d(backbone.patch_embed.grid_size, backbone.pos_embed.shape[-1])
            backbone.pos_embed.copy_(POSITION_AMPLITUDE * waves)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches of tokens (B, tokens, C) as a map (B, C, h, w); a class token, if any, comes first."""
    patches = tokens[:, -grid[0] * grid[1] :]
    return patches.mT.reshape(len(tokens), -1, *grid)


@dataclass
class SerTrainer(Resumable):
    """A run with its state: `step` steps are done. `log` has an entry for every `save_every` steps."""

    run: SerRun
    settings: SerSettings
    digits: SourceDigits
    preprocessing: Preprocessing
    learner: Learner
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    step: int = 0
    seconds: float = 0.0
    log: list[Facts] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)

    @property
    def geometric(self) -> int:
        """How many images of a batch have geometric views; two at least, or the loss has nothing to contrast."""
        return max(2, round(self.run.share * self.settings.batch)) if self.run.share else 0

    def advance(self) -> None:
        """One step of the optimiser."""
        began = time.process_time()
        self.learner.train()
        invariance, equivariance = self.losses_of(*self.batch())
        self.optimiser.zero_grad()
        (invariance + self.run.weight * equivariance).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learner.parameters(), MAX_GRADIENT)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.process_time() - began
        self.losses.append((invariance.item(), equivariance.item()))

    def batch(self) -> tuple[Tensor, GeometricViews | None]:
        """Of the next step: both views of the ordinary images, (2 B, 3, H, W), and the geometric ones of the others.

        Every run has the same images, and the same ordinary views of those that have them in both.
        """
        stream = (self.settings.seed, _STREAM, self.step)
        pixels = compose(self.digits, self.settings.batch, stream).pixels
        images = torch.from_numpy(pixels).float()[:, None] / 255
        generators = [np.random.default_rng((*stream, i)) for i in range(1, 4)]
        ordinary = len(images) - self.geometric
        # Drawn for the whole batch, so that no run's draws depend on how many of them it keeps.
        views = torch.cat([photometric(crops(images, each), each)[:ordinary] for each in generators[:2]])
        if not self.geometric:
            return self._inputs(views), None
        generator = generators[2]
        geometric, elements = geometric_views(images[ordinary:], self._grid(), generator)
        one, other = (self._inputs(photometric(view, generator)) for view in geometric)
        return self._inputs(views), GeometricViews((one, other), elements)

    def losses_of(self, ordinary: Tensor, geometric: GeometricViews | None) -> tuple[Tensor, Tensor]:
        """Barlow Twins' loss of the whole batch, and the equivariance loss of its geometric views."""
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

    def _grid(self) -> int:
        return int(self.learner.backbone.patch_embed.grid_size[0])

    def _inputs(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) as the backbone expects them, (B, 3, H, W)."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        return (images - mean) / std

    def note(self, validation: Facts | None) -> None:
        """Append the mean losses since the last entry to the log."""
        invariance, equivariance = np.mean(self.losses, axis=0)
        entry = {"invariance_loss": round(float(invariance), 4), "equivariance_loss": round(float(equivariance), 5)}
        self.log.append({"step": self.step, **entry, "cpu_seconds": round(self.seconds, 1), **(validation or {})})
        self.losses.clear()

    def _parts(self) -> dict[str, Stateful]:
        return {"learner": self.learner, "optimiser": self.optimiser, "schedule": self.schedule}

    def _settings(self) -> Facts:
        return {"run": asdict(self.run), "settings": self.settings.of_training()}


def create_trainer(run: SerRun, settings: SerSettings, work: Path | None = None) -> SerTrainer:
    """The run's trainer: from its state in `work` if there is one, else from random weights."""
    learner = Learner(settings)
    optimiser = torch.optim.AdamW(learner.parameters(), settings.rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.rate, total_steps=settings.steps + 1, pct_start=WARM_UP
    )
    preprocessing = preprocessing_of(settings.recipe)
    trainer = SerTrainer(run, settings, source_digits("train"), preprocessing, learner, optimiser, schedule)
    if work is not None and (work / f"{run.name}.pt").exists():
        trainer.load(work / f"{run.name}.pt")
    return trainer


def train(run: SerRun, settings: SerSettings, work: Path, progress: Progress | None = None) -> SerTrainer:
    """Do what is left of a run; its state stays in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    trainer = create_trainer(run, settings, work)
    every = (settings.save_every, settings.validate_every)
    finish(trainer, run.name, settings.steps, work / f"{run.name}.pt", every, lambda: validate(trainer), progress)
    return trainer


# --- linear probe ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def features_of(trainer: SerTrainer, inputs: NDArray[np.float32], batch: int = 200) -> NDArray[np.float64]:
    """What the head reads of inputs (N, 3, H, W): (N, features)."""
    trainer.learner.eval()
    parts = torch.split(torch.from_numpy(inputs), batch)
    return torch.cat([trainer.learner.features(part) for part in parts]).double().numpy()


class Probe(NamedTuple):
    """A linear classifier of features: weight (classes, features) and bias (classes,), float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float

    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(features @ self.weight.T + self.bias)


def fit_probe(trainer: SerTrainer, strengths: Sequence[float] = PROBE_STRENGTHS) -> Probe:
    """Logistic regression of the training digits' features, regularised as the validation digits like best."""
    settings = trainer.settings
    stream = (settings.seed, _STREAM + 1)
    images = compose(source_digits("train"), settings.probe_images, stream)
    check = compose(source_digits("validation"), settings.validation_images, stream)
    features, held_out = (features_of(trainer, _inputs_of(trainer, each)) for each in (images, check))
    probes = [_regress(features, images.labels, strength) for strength in strengths]
    return max(probes, key=lambda probe: float((probe.logits(held_out).argmax(1) == check.labels).mean()))


def _regress(features: NDArray[np.float64], labels: NDArray[np.int64], strength: float) -> Probe:
    """Multinomial logistic regression of standardised features, as a classifier of the features themselves."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    with warnings.catch_warnings():
        # With next to no regularisation the last steps change the weights, but not the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=2000).fit((features - mean) / spread, labels)
    # Few images may lack a class, which then stays at a logit that never wins.
    weight, bias = np.zeros((CLASSES, features.shape[1])), np.full(CLASSES, -1e3)
    weight[fitted.classes_] = fitted.coef_ / spread
    bias[fitted.classes_] = fitted.intercept_ - weight[fitted.classes_] @ mean
    return Probe(weight, bias, strength)


def _inputs_of(trainer: SerTrainer, images: DigitImages) -> NDArray[np.float32]:
    return images.inputs(trainer.preprocessing.mean, trainer.preprocessing.std)


# --- what was learnt -------------------------------------------------------------------------------------------------


def classify(trainer: SerTrainer, probe: Probe, images: DigitImages, seed: int) -> tuple[Facts, NDArray[np.bool_]]:
    """Accuracy, accuracy of locally scaled copies and InvE; and which images are classified rightly, (N,)."""
    inputs = _inputs_of(trainer, images)
    logits = [probe.logits(features_of(trainer, x)) for x in (inputs, local_scale(inputs, seed, STRENGTH))]
    here, there = (torch.from_numpy(each).softmax(dim=1) for each in logits)
    right, right_scaled = (each.argmax(axis=1) == images.labels for each in logits)
    measured = {
        "accuracy": round(float(right.mean()), 4),
        "accuracy_locally_scaled": round(float(right_scaled.mean()), 4),
        "inv_e": round(float((here - there).norm(dim=1).mean()), 4),
    }
    return measured, right


@torch.no_grad()
def equivariance_errors(learner: Learner, inputs: Tensor, batch: int = 100) -> dict[str, list[Facts]]:
    """For every action g and every block, how far its map is from equivariant, mean over images (N, 3, H, W).

    error: |f(g x) - rho_g f(x)| / |f(x)|, root mean squares over the patches that g covers. centred: the same over the
    spread of f's patches about their mean, since a large constant would hide every change. cosine: mean over patches.
    """
    learner.eval()
    parts = torch.split(inputs, batch)
    maps = [torch.cat(found) for found in zip(*map(learner.blocks, parts), strict=True)]
    report: dict[str, list[Facts]] = {}
    for name, g in ACTIONS.items():
        acted = [torch.cat(found) for found in zip(*(learner.blocks(g.act(x)) for x in parts), strict=True)]
        report[name] = [_distance(g, *pair) for pair in zip(acted, maps, strict=True)]
    return report


def _distance(g: Similarity, found: Tensor, original: Tensor) -> Facts:
    """See `equivariance_errors`; maps (N, C, h, w) of g x and of x."""
    covered = g.covers(*original.shape[-2:])
    expected, actual = (maps[..., covered].double() for maps in (g.act(original), found))
    error, norm, spread = (
        values.square().flatten(1).sum(dim=1).div(values.shape[-1]).sqrt()
        for values in (
            actual - expected,
            original.flatten(2).double(),
            original.flatten(2).double() - original.double().mean(dim=(0, 2, 3))[:, None],
        )
    )
    measures = {
        "error": error / norm,
        "centred": error / spread,
        "cosine": torch.cosine_similarity(actual, expected, dim=1).mean(dim=1),
    }
    return {name: round(float(values.mean()), 4) for name, values in measures.items()}


def at_the_map(trainer: SerTrainer, errors: dict[str, list[Facts]]) -> Facts:
    """The mean over the actions at the block before the class token joins."""
    place = trainer.learner.backbone.insert_at - 1
    found = [blocks[place] for blocks in errors.values()]
    return {f"map_{name}": round(float(np.mean([each[name] for each in found])), 4) for name in found[0]}


def validate(trainer: SerTrainer) -> Facts:
    """Accuracy and equivariance on digits that are neither trained on nor tested on."""
    count = trainer.settings.validation_images
    images = compose(source_digits("validation"), count, (trainer.settings.seed, 1))
    measured, _ = classify(trainer, fit_probe(trainer, PROBE_STRENGTHS[:1]), images, seed=2)
    maps = torch.from_numpy(_inputs_of(trainer, images)[: trainer.settings.map_images])
    return {"validation": {**measured, **at_the_map(trainer, equivariance_errors(trainer.learner, maps))}}


def test(trainer: SerTrainer, probe: Probe) -> tuple[Facts, NDArray[np.bool_]]:
    """Every measure on the test digits; and which images are classified rightly, (N,)."""
    settings = trainer.settings
    images = test_digits(settings)
    measured, right = classify(trainer, probe, images, seed=4)
    maps = torch.from_numpy(_inputs_of(trainer, images)[: settings.map_images])
    errors = equivariance_errors(trainer.learner, maps)
    measured = {**measured, **at_the_map(trainer, errors), "probe_strength": probe.strength, "equivariance": errors}
    return measured, right


def test_digits(settings: SerSettings) -> DigitImages:
    """The images that every run is tested with."""
    return compose(source_digits("test"), settings.test_images, 3)


def difference(right: NDArray[np.bool_], other: NDArray[np.bool_], digits: NDArray[np.int64]) -> Facts:
    """How much more often `right` than `other`, of the same images, and the standard error (N,).

    Images of the same source digit, which `digits` names, are not independent of one another: the error is that of a
    mean over groups (ratio estimator).
    """
    gain = right.astype(np.float64) - other
    groups = [gain[digits == digit] for digit in np.unique(digits)]
    residuals = np.array([(each - gain.mean()).sum() for each in groups])
    spread = np.sqrt(len(groups) / max(1, len(groups) - 1) * np.square(residuals).sum()) / len(gain)
    return {"difference": round(float(gain.mean()), 4), "standard_error": round(float(spread), 4)}


# --- what it costs ---------------------------------------------------------------------------------------------------


def cost(settings: SerSettings, share: float, weight: float, steps: int = 12) -> Facts:
    """CPU seconds and FLOPs of a step of the plain run and of SER, steps of both in turn; and their ratios.

    The median of seconds, since other programs disturb some steps; the mean of FLOPs, as the views' sizes vary.
    """
    run = SerRun("ser", share, weight)
    trainers = [create_trainer(each, replace(settings, steps=steps)) for each in (SerRun("plain"), run)]
    flops: list[list[float]] = [[], []]
    seconds: list[list[float]] = [[], []]
    for _ in range(steps // 2):
        for trainer, counted in zip(trainers, flops, strict=True):
            with FlopCounterMode(display=False) as counter:
                trainer.advance()
            counted.append(counter.get_total_flops())
    for _ in range(steps - steps // 2):
        for trainer, spent in zip(trainers, seconds, strict=True):
            before = trainer.seconds
            trainer.advance()
            spent.append(trainer.seconds - before)
    mean, median = [float(np.mean(each)) for each in flops], [float(np.median(each)) for each in seconds]
    return {
        "batch": settings.batch,
        "geometric_images": trainers[1].geometric,
        "steps": steps,
        "gflops": [round(each / 1e9, 2) for each in mean],
        "gflops_ratio": round(mean[1] / mean[0], 4),
        "cpu_seconds": [round(each, 4) for each in median],
        "cpu_seconds_ratio": round(median[1] / median[0], 3),
    }


# --- files -----------------------------------------------------------------------------------------------------------


def write(trainers: Sequence[SerTrainer], out: Path, costs: Sequence[Facts] = ()) -> Facts:
    """Write checkpoints, and NAME.json: settings, log and results of every run. Returns what the file holds.

    The first run's checkpoint is a baseline, and the last one's the recipe's; what is between leaves results alone.
    """
    (out / "baselines").mkdir(parents=True, exist_ok=True)
    settings = trainers[0].settings
    name = settings.recipe.name
    probes = [fit_probe(trainer) for trainer in trainers]
    tested = [test(trainer, probe) for trainer, probe in zip(trainers, probes, strict=True)]
    digits = test_digits(settings).sources[:, 0]
    runs = {}
    for trainer, (measured, right) in zip(trainers, tested, strict=True):
        against = {
            other.run.name: difference(right, others, digits)
            for other, (_, others) in zip(trainers, tested, strict=True)
            if other is not trainer
        }
        runs[trainer.run.name] = {**describe(trainer), "test": {**measured, "accuracy_against": against}}
    for trainer, probe in zip(trainers, probes, strict=True):
        if trainer is trainers[0]:
            save_checkpoint(trainer, probe, out / "baselines" / f"{name}_{trainer.run.name}.safetensors")
        elif trainer is trainers[-1]:
            save_checkpoint(trainer, probe, out / f"{name}.safetensors")
    shared = {key: value for key, value in asdict(settings).items() if key != "recipe"}
    versions = installed_versions(("torch", "timm", "numpy", "scikit-learn"))
    untrained = create_trainer(SerRun("untrained"), settings)
    report = {
        "recipe": name,
        "map_after_block": trainers[0].learner.backbone.insert_at - 1,
        "settings": shared,
        "versions": versions,
        "cost": list(costs),
        "untrained": test(untrained, fit_probe(untrained))[0],
        "runs": runs,
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def save_checkpoint(trainer: SerTrainer, probe: Probe, path: Path) -> None:
    """The model under the published keys, with the probe as its head."""
    head: Any = trainer.learner.backbone.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(probe.weight))
        head.bias.copy_(torch.from_numpy(probe.bias))
    save_file({k: v.contiguous() for k, v in published_state_dict(trainer.learner.model).items()}, path)


def describe(trainer: SerTrainer) -> Facts:
    """The run as the report tells it."""
    return {
        **asdict(trainer.run),
        "geometric_images": trainer.geometric,
        "parameters": sum(p.numel() for p in trainer.learner.model.parameters()),
        "images": trainer.step * trainer.settings.batch,
        "cpu_seconds": round(trainer.seconds, 1),
        "log": trainer.log,
    }


def tables(report: Facts) -> Iterator[Table]:
    """The results, one row for each run; accuracies in %."""
    tests = {"untrained": report["untrained"], **{name: run["test"] for name, run in report["runs"].items()}}
    measures = ("map_error", "map_centred", "map_cosine")
    rows = (
        (
            n,
            f"{100 * t['accuracy']:.1f}",
            f"{100 * t['accuracy_locally_scaled']:.1f}",
            t["inv_e"],
            *map(t.get, measures),
        )
        for n, t in tests.items()
    )
    heads = ("run", "accuracy", "locally scaled", "InvE", "error of equivariance", "centred", "cosine")
    yield table("Test digits: linear probe, and map before the class token", heads, rows)
    place = report["map_after_block"]
    by_action = ((n, *(t["equivariance"][g][place]["error"] for g in ACTIONS)) for n, t in tests.items())
    yield table("Error of equivariance of that map", ("run", *ACTIONS), by_action)


# --- command ---------------------------------------------------------------------------------------------------------


def run_all(settings: SerSettings, weight: float, share: float, out: Path, work: Path, progress: Progress) -> Facts:
    """Train every run, measure what a step costs, and write it all."""
    trainers = [train(run, settings, work, progress) for run in plan(weight, share)]
    costs = [cost(settings, share, weight), cost(replace(settings, batch=400), 0.01, weight, 6)] if weight else []
    return write(trainers, out, costs)
