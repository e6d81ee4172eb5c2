"""What every training of the digit models shares: the step, the log, the saved state and the progress bar.

A training can be interrupted and resumed at any time. What a step computes depends only on the seed, on the number of
the step and on the saved state, so a resumed training ends with the same weights, bit for bit.
"""

from __future__ import annotations

import io
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from dec_export.errors import DecExportError
from dec_export.files import write_atomically

WARM_UP = 0.1
WEIGHT_DECAY = 0.05
MAX_GRADIENT = 1.0

# One entry of the log, as it is written to JSON: numbers, and the measures of a validation under `validation`.
LogEntry = dict[str, "float | dict[str, float]"]


@dataclass(frozen=True)
class Steps:
    """The number of steps, and after how many of them the state is saved and the model validated.

    The model is validated only when its state is saved, so `validate_every` is a multiple of `save_every`.
    """

    total: int
    save_every: int
    validate_every: int


class ParameterGroup(NamedTuple):
    """Parameters that are trained with the same highest learning rate."""

    parameters: list[nn.Parameter]
    rate: float


class Trainer(ABC):
    """One training with its state.

    `step` steps are done and took `seconds` of CPU time. `log` has an entry for every saved state, and `losses` has the
    two losses of every step since the last entry.

    A subclass says what the losses of a step are and what is measured on validation images. `network_key` is the name
    of the network in a saved state. `loss_digits` has the names of the two losses in the log, with their decimals.
    """

    network_key: ClassVar[str]
    loss_digits: ClassVar[dict[str, int]]

    def __init__(self, name: str, network: nn.Module, groups: Sequence[ParameterGroup], steps: Steps) -> None:
        self.name, self.network, self.steps = name, network, steps
        self.optimiser = torch.optim.AdamW(
            [{"params": group.parameters, "lr": group.rate} for group in groups], weight_decay=WEIGHT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, [group.rate for group in groups], total_steps=steps.total + 1, pct_start=WARM_UP
        )
        self.step = 0
        self.seconds = 0.0
        self.log: list[LogEntry] = []
        self.losses: list[tuple[float, float]] = []

    @property
    @abstractmethod
    def equivariance_weight(self) -> float:
        """The weight of the second loss."""

    @abstractmethod
    def losses_of_step(self) -> tuple[Tensor, Tensor]:
        """The main loss and the equivariance loss of the next step, two scalars."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Measures on images that are neither trained on nor tested on."""

    @abstractmethod
    def settings_of_state(self) -> dict[str, object]:
        """The settings on which the weights depend. A saved state of other settings is refused."""

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters whose gradient is clipped."""
        return self.network.parameters()

    def advance(self) -> None:
        """Do one step of the optimiser."""
        began = time.process_time()
        self.network.train()
        main, equivariance = self.losses_of_step()
        self.optimiser.zero_grad()
        (main + self.equivariance_weight * equivariance).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained_parameters(), MAX_GRADIENT)
        self.optimiser.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.process_time() - began
        self.losses.append((main.item(), equivariance.item()))

    def note(self, validation: Mapping[str, float] | None) -> None:
        """Append the mean losses since the last entry to the log, and the measures of a validation if there was one."""
        entry: LogEntry = {"step": self.step}
        for (name, digits), mean in zip(self.loss_digits.items(), np.mean(self.losses, axis=0), strict=True):
            entry[name] = round(float(mean), digits)
        entry["cpu_seconds"] = round(self.seconds, 1)
        if validation:
            entry["validation"] = dict(validation)
        self.log.append(entry)
        self.losses.clear()

    def state_file(self, work: Path) -> Path:
        """The file in the folder `work` that holds the state of this training."""
        return work / f"{self.name}.pt"

    def save(self, work: Path) -> None:
        """Write the state to the folder `work`. The file is written completely or not at all."""
        path = self.state_file(work)
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        progress = {"step": self.step, "seconds": self.seconds, "log": self.log}
        content = io.BytesIO()
        torch.save({**parts, **self.settings_of_state(), **progress}, content)
        write_atomically(path, content.getvalue())

    def resume(self, work: Path) -> None:
        """Continue from the state in the folder `work`, if it holds one.

        DecExportError when that state was made with other settings. A setting that the state does not name is not
        compared, because states of earlier versions do not name all of them.
        """
        path = self.state_file(work)
        if not path.exists():
            return
        # torch.load promises no type; `save` wrote these values.
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if any(name in state and state[name] != value for name, value in self.settings_of_state().items()):
            raise DecExportError(
                f"'{path}' is the state of a run of other settings: remove it, or name another folder with --work."
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler]:
        """What a saved state consists of, besides settings and numbers."""
        return {self.network_key: self.network, "optimiser": self.optimiser, "schedule": self.schedule}


AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def train(trainer: AnyTrainer, work: Path, progress: Progress | None = None) -> AnyTrainer:
    """Resume the training from its state in the folder `work` and finish it. The same trainer is returned.

    DecExportError when the state was made with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    trainer.resume(work)
    steps = trainer.steps
    task = progress.add_task(trainer.name, total=steps.total, completed=trainer.step) if progress else None
    while trainer.step < steps.total:
        trainer.advance()
        last = trainer.step == steps.total
        if last or trainer.step % steps.save_every == 0:
            trainer.note(trainer.validate() if last or trainer.step % steps.validate_every == 0 else None)
            trainer.save(work)
            if progress:
                progress.console.print(trainer.name, json.dumps(trainer.log[-1]), soft_wrap=True)
        if progress and task is not None:
            progress.update(task, completed=trainer.step)
    return trainer


def progress_bar() -> Progress:
    """A display on stderr with one bar for each run."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
