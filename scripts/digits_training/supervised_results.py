"""What the supervised runs have learnt: test scores, checkpoints, the report and its tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from safetensors.torch import save_file

from dec_export.data.digits import compose, source_digits
from dec_export.libraries import installed_versions
from dec_export.parity.measures.labelled import SCALES
from dec_export.reference.weights.fitting import published_state_dict
from dec_export.report.tables import table

from .supervised import SupervisedTrainer, without_canonicalizers
from .supervised_tasks import Scores


@dataclass(frozen=True)
class TestedRun:
    """A run and its scores on test digits: on images of all scales, and on images of every single scale."""

    __test__ = False  # This tells pytest that the class is not a test.

    trainer: SupervisedTrainer
    scores: Scores
    at_scale: dict[float, Scores]

    def as_json(self) -> dict[str, object]:
        """The run as the report has it."""
        trainer, task = self.trainer, self.trainer.task
        scores: dict[str, object] = {**task.scores_as_json(self.scores)}
        scores[f"{task.score_key}_at_scale"] = {str(scale): at.score for scale, at in self.at_scale.items()}
        scores[f"{task.score_key}_locally_scaled_at_scale"] = {
            str(scale): at.score_scaled for scale, at in self.at_scale.items()
        }
        return {
            **asdict(trainer.run),
            "parameters": sum(p.numel() for p in trainer.trained_parameters()),
            "images": trainer.step * trainer.settings.batch,
            "cpu_seconds": round(trainer.seconds, 1),
            "test": scores,
            "log": trainer.log,
        }


def evaluate(trainer: SupervisedTrainer) -> TestedRun:
    """Score a trained run on the test digits. Each of them is the labelled digit equally often at every scale."""
    settings, digits = trainer.settings, source_digits("test")
    scores = trainer.measure(compose(digits, settings.test_images, 3), seed=4)
    at_scale = {}
    for i, scale in enumerate(SCALES):
        every = trainer.task.all_digits_scaled
        images = compose(digits, settings.images_per_scale, (5, i), scale=scale, every=every)
        at_scale[scale] = trainer.measure(images, seed=6)
    return TestedRun(trainer, scores, at_scale)


def write(runs: Sequence[TestedRun], out: Path) -> None:
    """Write checkpoints and NAME.json, which holds the settings, log and results of every run, to the folder `out`.

    The checkpoint of the run with canonicalizers is NAME.safetensors. Those of the runs that it is compared with lie in
    the folder `baselines`.
    """
    (out / "baselines").mkdir(parents=True, exist_ok=True)
    settings = runs[0].trainer.settings
    name = settings.recipe.name
    for trainer in (run.trainer for run in runs):
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
        "runs": {run.trainer.run.name: run.as_json() for run in runs},
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


def tables(runs: Sequence[TestedRun]) -> Iterator[Table]:
    """The results, with one row for each run; scores are in %."""
    task = runs[0].trainer.task
    score, distance = task.score_title, task.distance_title
    main = (
        (run.trainer.run.name, _percent(run.scores.score), _percent(run.scores.score_scaled), run.scores.distance)
        for run in runs
    )
    yield table("Test digits", ("run", score, f"{score}, locally scaled", distance), main)
    plain = {run.trainer.run.name: [at.score for at in run.at_scale.values()] for run in runs}
    scaled = {run.trainer.run.name: [at.score_scaled for at in run.at_scale.values()] for run in runs}
    for title, found in ((f"{score}, at scale", plain), (f"{score}, locally scaled as well, at scale", scaled)):
        rows = ((n, *map(_percent, values), f"{np.var(values):.5f}") for n, values in found.items())
        yield table(title, ("run", *map(str, SCALES), "variance"), rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
