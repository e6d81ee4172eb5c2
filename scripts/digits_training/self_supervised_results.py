"""What the self-supervised runs have learnt: test scores, checkpoints, the report and its tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from dec_export.data.digits import DigitImages, compose, source_digits
from dec_export.libraries import installed_versions
from dec_export.reference.groups import ACTIONS
from dec_export.reference.weights.fitting import published_state_dict
from dec_export.report.tables import table

from .cost import Cost
from .map_errors import MapError, equivariance_errors, mean_error, named_map_error
from .probe import Probe, ProbeScores, classify, fit_probe
from .self_supervised import SerTrainer
from .self_supervised_plan import SerRun, SerSettings


@dataclass(frozen=True)
class TestedRun:
    """A run, its probe, and what both do on test digits.

    errors: for every action, the error of every block's map. right: which images the probe classifies correctly, (N,).
    """

    __test__ = False  # This tells pytest that the class is not a test.

    trainer: SerTrainer
    probe: Probe
    scores: ProbeScores
    errors: dict[str, list[MapError]]
    right: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.trainer.run.name

    @property
    def mapped_block(self) -> int:
        """The block whose output has the equivariance loss."""
        return self.trainer.learner.mapped_block

    @property
    def map_error(self) -> MapError:
        """The mean over the actions at that block."""
        return mean_error(self.errors, self.mapped_block)

    def scores_as_json(self) -> dict[str, object]:
        """The measures as the report has them."""
        return {
            **self.scores._asdict(),
            **named_map_error(self.map_error),
            "probe_strength": self.probe.strength,
            "equivariance": {name: [each._asdict() for each in blocks] for name, blocks in self.errors.items()},
        }

    def as_json(self, others: Sequence[TestedRun]) -> dict[str, object]:
        """The run as the report has it, with its accuracy compared with that of the other runs."""
        trainer = self.trainer
        digits = digits_of_test(trainer.settings).sources[:, 0]
        against = {other.name: difference(self.right, other.right, digits)._asdict() for other in others}
        return {
            **asdict(trainer.run),
            "geometric_images": trainer.geometric,
            "parameters": sum(p.numel() for p in trainer.learner.model.parameters()),
            "images": trainer.step * trainer.settings.batch,
            "cpu_seconds": round(trainer.seconds, 1),
            "log": trainer.log,
            "test": {**self.scores_as_json(), "accuracy_against": against},
        }


@dataclass(frozen=True)
class Results:
    """All that is reported: every run in order, an untrained model for comparison, and what a step costs."""

    runs: list[TestedRun]
    untrained: TestedRun
    costs: Sequence[Cost] = ()

    def as_json(self) -> dict[str, object]:
        """The report."""
        settings = self.untrained.trainer.settings
        runs = {run.name: run.as_json([other for other in self.runs if other is not run]) for run in self.runs}
        return {
            "recipe": settings.recipe.name,
            "map_after_block": self.untrained.mapped_block,
            "settings": {key: value for key, value in asdict(settings).items() if key != "recipe"},
            "versions": installed_versions(("torch", "timm", "numpy", "scikit-learn")),
            "cost": [asdict(cost) for cost in self.costs],
            "untrained": self.untrained.scores_as_json(),
            "runs": runs,
        }


class Difference(NamedTuple):
    """By how much one run's accuracy is greater than another's, and the standard error, rounded to four decimals."""

    difference: float
    standard_error: float


def difference(right: NDArray[np.bool_], other: NDArray[np.bool_], digits: NDArray[np.int64]) -> Difference:
    """By how much one run's accuracy is greater than another's on the same images.

    right, other: which images either run classifies correctly, (N,). digits: the source digit of every image, (N,).
    Images of the same source digit are not independent of one another, so the error is that of a mean over groups
    (ratio estimator).
    """
    gain = right.astype(np.float64) - other
    groups = [gain[digits == digit] for digit in np.unique(digits)]
    residuals = np.array([(each - gain.mean()).sum() for each in groups])
    spread = np.sqrt(len(groups) / max(1, len(groups) - 1) * np.square(residuals).sum()) / len(gain)
    return Difference(round(float(gain.mean()), 4), round(float(spread), 4))


def digits_of_test(settings: SerSettings) -> DigitImages:
    """The images with which every run is tested."""
    return compose(source_digits("test"), settings.test_images, 3)


def evaluate_run(trainer: SerTrainer) -> TestedRun:
    """Fit the probe of a run and measure both on the test digits."""
    learner, settings = trainer.learner, trainer.settings
    probe = fit_probe(learner, settings)
    images = digits_of_test(settings)
    scores, right = classify(learner, probe, images, seed=4)
    maps = torch.from_numpy(learner.inputs_of(images)[: settings.map_images])
    return TestedRun(trainer, probe, scores, equivariance_errors(learner, maps), right)


def evaluate(trainers: Sequence[SerTrainer], costs: Sequence[Cost] = ()) -> Results:
    """Test every trained run, and an untrained model of the same settings."""
    untrained = SerTrainer(SerRun("untrained"), trainers[0].settings)
    return Results([evaluate_run(trainer) for trainer in trainers], evaluate_run(untrained), costs)


def write(results: Results, out: Path) -> None:
    """Write checkpoints and NAME.json, which holds the settings, log and results of every run, to the folder `out`.

    The first run's checkpoint lies in the folder `baselines`. The last run's checkpoint is that of the recipe,
    NAME.safetensors. The runs between them leave only their results.
    """
    (out / "baselines").mkdir(parents=True, exist_ok=True)
    name = results.untrained.trainer.settings.recipe.name
    first, *later = results.runs
    save_checkpoint(first, out / "baselines" / f"{name}_{first.name}.safetensors")
    if later:
        save_checkpoint(later[-1], out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")


def save_checkpoint(run: TestedRun, path: Path) -> None:
    """Write the run's model under the published keys, with its probe as the head."""
    head = run.trainer.learner.backbone.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(run.probe.weight))
        head.bias.copy_(torch.from_numpy(run.probe.bias))
    weights = published_state_dict(run.trainer.learner.model)
    save_file({key: value.contiguous() for key, value in weights.items()}, path)


def tables(results: Results) -> Iterator[Table]:
    """The results, with one row for each run; accuracies are in %."""
    runs = (results.untrained, *results.runs)
    rows = (
        (
            run.name,
            f"{100 * run.scores.accuracy:.1f}",
            f"{100 * run.scores.accuracy_locally_scaled:.1f}",
            run.scores.inv_e,
            *run.map_error,
        )
        for run in runs
    )
    heads = ("run", "accuracy", "locally scaled", "InvE", "error of equivariance", "centred", "cosine")
    yield table("Test digits: linear probe, and map before the class token", heads, rows)
    by_action = ((run.name, *(run.errors[g][run.mapped_block].error for g in ACTIONS)) for run in runs)
    yield table("Error of equivariance of that map", ("run", *ACTIONS), by_action)
