"""The results of an evaluation as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from dec_export.evaluation.results import ConditionFacts, Results
from dec_export.parity.numbers import Number
from dec_export.tasks import task_named


def evaluation(results: Results) -> RenderableType:
    """Return one table for each condition, with a row for each model."""
    tables = [_condition(condition, results.task) for condition in results.conditions]
    return Group(f"{results.images:,} images ({results.layout}), {results.task}", *tables)


def _condition(condition: ConditionFacts, task: str) -> Table:
    names = list(next(iter(condition.metrics.values())))
    table = Table(title=condition.name, title_justify="left")
    table.add_column("model")
    for name in names:
        table.add_column(_label(task, name), justify="right")
    for model, metrics in condition.metrics.items():
        table.add_row(model, *(_shown(task, name, metrics[name]) for name in names))
    return table


def _label(task: str, name: str) -> str:
    return next((metric.label for metric in task_named(task).metrics() if metric.name == name), task_named(task).metric)


def _shown(task: str, name: str, value: Number) -> str:
    percent = any(metric.name == name and metric.percent for metric in task_named(task).metrics())
    return f"{value:.2%}" if percent else f"{value:.4f}"
