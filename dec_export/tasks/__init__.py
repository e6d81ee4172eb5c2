"""The tasks of models, with one file for each task, and their registry.

A new task is a file here and a line in `TASKS`. Everything that depends on the task is a method or a value of `Task`.

The rules of recipes depend on the task, so this package imports neither recipes nor the reference. Objects of theirs
that it needs are passed to it (`base.Warp`, `base.LabelledPictures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from dec_export.errors import DecExportError
from dec_export.tasks.base import Task
from dec_export.tasks.classification import Classification
from dec_export.tasks.segmentation import Segmentation

# Every task by the name that recipes give it, in the order of help texts.
TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        Classification.name: Classification(),
        Segmentation.name: Segmentation(),
    }
)


def task_named(name: str) -> Task:
    """Return the task of that name.

    Raises:
        DecExportError: if no task has that name.
    """
    if name not in TASKS:
        raise DecExportError(f"Unknown task '{name}', expected one of {', '.join(TASKS)}.")
    return TASKS[name]


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(TASKS)


def ensemble_names() -> tuple[str, ...]:
    """Return the names of the ensembles that servers run, with one for each task."""
    return tuple(task.ensemble for task in TASKS.values())


__all__ = ["TASKS", "Task", "ensemble_names", "task_named", "task_names"]
