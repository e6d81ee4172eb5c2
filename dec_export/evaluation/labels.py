"""The names and the numbers of metrics as people read them."""

from __future__ import annotations

import math

from dec_export.tasks import task_named


class Labels:
    """The names and the forms of the metrics of one task. invariance: the name of its measure of invariance."""

    def __init__(self, task: str) -> None:
        found = task_named(task)
        self.invariance = found.metric.lower()
        self._labels = {metric.name: metric.label for metric in found.metrics()} | {self.invariance: found.metric}
        self._better = {metric.name for metric in found.metrics() if metric.higher_is_better}
        self._percent = {metric.name for metric in found.metrics() if metric.percent}

    def label(self, name: str) -> str:
        """Return the name of a metric in a table."""
        return self._labels.get(name, name)

    def is_percent(self, name: str) -> bool:
        """Return whether a metric is a share."""
        return name in self._percent

    def higher_is_better(self, name: str) -> bool:
        """Return whether a higher value of a metric is better."""
        return name in self._better

    def unit(self, name: str) -> str:
        """Return the unit of an amount of a metric, with a space before it."""
        return " percentage points" if self.is_percent(name) else ""

    def value(self, name: str, value: float) -> str:
        """Return a metric; shares are in percent."""
        if not math.isfinite(value):
            return "not finite"
        return f"{value:.2%}" if self.is_percent(name) else f"{value:.4f}"

    def amount(self, name: str, value: float) -> str:
        """Return how much a metric has changed; shares are in percentage points."""
        if math.isinf(value):
            return "infinity" if value > 0 else "-infinity"
        scaled, digits = (100 * value, 2) if self.is_percent(name) else (value, 4)
        return f"{scaled + 0.0:.{digits}f}" if value == 0 or self.is_visible(value) else f"{scaled:.0e}"

    def is_visible(self, value: float) -> bool:
        """Return whether a change is large enough to alter the digits of a metric that tables show."""
        return abs(value) >= 0.5e-4

    def change(self, name: str, value: float) -> str:
        """Return a difference with its sign; NaN, which JSON has instead of infinity, gives a question mark."""
        if not math.isfinite(value):
            return "?"
        text = self.amount(name, value)
        return text if text.startswith("-") or value == 0 else f"+{text}"
