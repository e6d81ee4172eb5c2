"""Trainings that are interrupted and resumed at will: their loop, their state on disk, their progress bar."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dec_export.errors import DecExportError
from dec_export.files import write_atomically

Facts = dict[str, Any]


class Stateful(Protocol):
    """A model, an optimiser or a schedule."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


class Training(Protocol):
    """One training: `step` steps are done, and `log` has an entry for each time that it was noted."""

    step: int
    log: list[Facts]

    def advance(self) -> None: ...
    def note(self, validation: Facts | None) -> None: ...
    def save(self, path: Path) -> None: ...


def finish(
    training: Training,
    name: str,
    steps: int,
    path: Path,
    every: tuple[int, int],
    validate: Callable[[], Facts],
    progress: Progress | None = None,
) -> None:
    """Do what is left of `steps` steps; the state stays in `path`.

    every: after how many steps the state is saved and noted, and after how many, which are a multiple, it is validated.
    """
    task = progress.add_task(name, total=steps, completed=training.step) if progress else None
    while training.step < steps:
        training.advance()
        last = training.step == steps
        if last or training.step % every[0] == 0:
            training.note(validate() if last or training.step % every[1] == 0 else None)
            training.save(path)
            if progress:
                progress.console.print(name, json.dumps(training.log[-1]), soft_wrap=True)
        if progress and task is not None:
            progress.update(task, completed=training.step)


def save_state(path: Path, parts: Mapping[str, Stateful], facts: Facts) -> None:
    """Write the state; whole or not at all."""
    content = io.BytesIO()
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, **facts}, content)
    write_atomically(path, content.getvalue())


def load_state(path: Path, parts: Mapping[str, Stateful], settings: Facts) -> Facts:
    """Load the parts from a saved state, and return all that it holds.

    DecExportError when one of the `settings` is another there; a state that does not name it is taken at its word.
    """
    state: Facts = torch.load(path, weights_only=True)
    if any(name in state and state[name] != value for name, value in settings.items()):
        raise DecExportError(f"'{path}' is a run of other settings: remove it, or name another folder with --work.")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state


class Resumable(ABC):
    """A training whose state is its parts, and how far it has come."""

    step: int
    seconds: float
    log: list[Facts]

    @abstractmethod
    def _parts(self) -> dict[str, Stateful]:
        """What is trained, and what trains it."""

    @abstractmethod
    def _settings(self) -> Facts:
        """What a state must have been made with."""

    def save(self, path: Path) -> None:
        """Write the state; whole or not at all."""
        progress = {"step": self.step, "seconds": self.seconds, "log": self.log}
        save_state(path, self._parts(), {**self._settings(), **progress})

    def load(self, path: Path) -> None:
        """Go on from a saved state. DecExportError when it belongs to a run of other settings."""
        state = load_state(path, self._parts(), self._settings())
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]


def progress_bar() -> Progress:
    """A bar for each run, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
