"""Train the shipped digit models and their baselines; write checkpoints, the training log and the table of results.

    python scripts/train_digits.py [--recipe digits_segmentation] [--out models] [--work FOLDER] [--runs plain ...]
    python scripts/train_digits.py --ser WEIGHT [--share SHARE]    # self-supervised, with and without SER

A run can be interrupted and resumed at any time; a resumed run ends with the same weights, bit for bit.

Without --ser, the models are trained on labels: a backbone first, and then the runs that continue from its weights. The
module `digits_training.supervised` describes them. With --ser, they are trained without labels, with Soft Equivariance
Regularization (SER), as `digits_training.self_supervised_plan` describes; WEIGHT 0 trains the plain run alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dec_export.errors import DecExportError
from dec_export.recipe.model import Recipe
from digits_training import self_supervised, self_supervised_results, supervised, supervised_results
from digits_training.cost import measure_cost
from digits_training.loop import progress_bar
from digits_training.self_supervised_plan import SHARE, SerSettings
from digits_training.self_supervised_plan import plan as ser_plan
from digits_training.supervised_tasks import TASKS


def main() -> None:
    """Run the command."""
    options = _parser().parse_args()
    # The order in which several threads add numbers is not fixed, so only one thread makes a run repeatable.
    torch.set_num_threads(1)
    with progress_bar() as progress:
        try:
            found = _supervised(options, progress) if options.ser is None else _self_supervised(options, progress)
        except DecExportError as error:
            sys.exit(str(error))
    Console().print(*found, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="name of a shipped recipe (default: digits, or digits_ser with --ser)")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder for checkpoints and log")
    parser.add_argument("--work", type=Path, help="folder for the states of unfinished runs (default: build/RECIPE)")
    parser.add_argument(
        "--runs",
        nargs="+",
        help="train only these runs, after the backbone, and write no results (default: train all runs)",
    )
    parser.add_argument("--backbone-steps", type=int, help="number of steps of the backbone")
    parser.add_argument(
        "--steps", type=int, help="number of steps of every run; without --ser, of every run after the backbone"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument(
        "--ser", type=float, metavar="WEIGHT", help="train with SER, whose equivariance loss has this weight"
    )
    parser.add_argument(
        "--share", type=float, default=SHARE, help="part of each batch that SER turns and scales (default: %(default)s)"
    )
    return parser


def _supervised(options: argparse.Namespace, progress: Progress) -> Sequence[Table]:
    """Train on labels. The tables show the results; there are none when only some runs were asked for."""
    recipe = Recipe.named(options.recipe or "digits")
    task, settings = TASKS[recipe.task], supervised.Settings.usual(recipe, options.seed)
    work = options.work or Path("build") / recipe.name
    runs = supervised.plan(options.backbone_steps or task.backbone_steps, options.steps or task.steps, task)
    wanted = options.runs and {"backbone", *options.runs}
    chosen = [run for run in runs if not wanted or run.name in wanted]
    trainers = [supervised.train(run, settings, work, progress) for run in chosen]
    if options.runs:
        return []
    tested = [supervised_results.evaluate(trainer) for trainer in trainers]
    supervised_results.write(tested, options.out)
    return list(supervised_results.tables(tested))


def _self_supervised(options: argparse.Namespace, progress: Progress) -> Sequence[Table]:
    """Train without labels, measure what a step costs, and return the tables of the results."""
    settings = SerSettings(Recipe.named(options.recipe or "digits_ser"), seed=options.seed)
    settings = settings if options.steps is None else replace(settings, steps=options.steps)
    work = options.work or Path("build") / settings.recipe.name
    runs = ser_plan(options.ser, options.share)
    trainers = [self_supervised.train(run, settings, work, progress) for run in runs]
    costs = []
    if options.ser:
        # Besides the share of this training, the published share of 1 %, in a batch that holds some of these images.
        published = replace(settings, batch=400)
        costs = [
            measure_cost(settings, options.share, options.ser),
            measure_cost(published, 0.01, options.ser, steps=6),
        ]
    results = self_supervised_results.evaluate(trainers, costs)
    self_supervised_results.write(results, options.out)
    return list(self_supervised_results.tables(results))


if __name__ == "__main__":
    main()
