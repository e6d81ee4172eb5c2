"""The report of an evaluation as one HTML file, which holds everything that it shows and needs no network."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from dec_export.evaluation.curves import curves
from dec_export.evaluation.facts import ConditionFacts, GroupFacts, Results
from dec_export.evaluation.gate import Verdict
from dec_export.evaluation.labels import Labels
from dec_export.evaluation.options import EvaluationOptions
from dec_export.evaluation.plan import Plan
from dec_export.evaluation.shown import examples
from dec_export.evaluation.tables import interval, sentence
from dec_export.files import write_new_file
from dec_export.progress import step
from dec_export.report.figures import listed
from dec_export.report.html import as_text, plotted, templates

_TEMPLATE = "evaluation.html.jinja"
# The number of images left out, and of values of a group, that the page lists.
_LISTED = 200
_WORDS = {
    Verdict.PASSED: ("✓ PASSED", "good"),
    Verdict.FAILED: ("✗ FAILED", "bad"),
    Verdict.UNDECIDED: ("? CANNOT TELL", "open"),
}


class Row(NamedTuple):
    """A metric of the engine beside that of a baseline, with their difference in numbers and in words.

    better: whether the engine is better; None if that is not known, or if the difference is too small to be seen.
    """

    metric: str
    ours: str
    baseline: str
    theirs: str
    difference: str
    words: str
    better: bool | None


class Cell(NamedTuple):
    """A cell of a confusion matrix.

    images: how many. share: their share of the images of the class, from 0 to 1. right: whether they are right.
    """

    images: int
    share: float
    right: bool


def write_page(plan: Plan, results: Results, data: Path, options: EvaluationOptions) -> None:
    """Write the page of an evaluation if the options name a file for it.

    Raises DecExportError when the file exists and `options.force` is not set.
    """
    if options.page is not None:
        with step("report"):
            text = render_page(plan, results, data, options)
            write_new_file(options.page, text, force=options.force, option="--html")


def render_page(plan: Plan, results: Results, data: Path, options: EvaluationOptions) -> str:
    """Return the page; names of images and of classes are escaped, because they are not trusted."""
    shown = Labels(results.task)
    found, legend = examples(plan, results)
    page = (
        templates()
        .get_template(_TEMPLATE)
        .render(
            results=results,
            word=_word(results),
            verdict=_verdict(results),
            judgements=list(_judgements(results, shown)),
            conditions=[(condition.name, list(_rows(results, condition, shown))) for condition in results.conditions],
            plots=[plotted(owned) for owned in curves(results)],
            groups=list(_groups(results, shown)),
            classes=_sorted_classes(results),
            matrices=[
                (name, [_cells(*row) for row in enumerate(rows)]) for name, rows in results.confusion_matrix.items()
            ],
            skipped=list(results.skipped.items())[:_LISTED],
            examples=found,
            legend=legend,
            command=command_of(plan, data, options),
        )
    )
    return as_text(page)


def _word(results: Results) -> tuple[str, str]:
    return _WORDS[results.gate.verdict] if results.gate else ("No limit was set", "neutral")


def _verdict(results: Results) -> str:
    images = f"{results.images:,} images"
    if not results.gate:
        beside = f"; {results.engine} beside {listed(results.baselines)}" if results.baselines else ""
        return f"Measured on {images}{beside}."
    return f"{results.engine} beside {results.gate.baseline}, on {images}."


def _judgements(results: Results, shown: Labels) -> Iterator[tuple[str, str]]:
    """Yield a sentence and its style for each limit."""
    if results.gate:
        for one in results.gate.judgements:
            yield sentence(one, results.engine, results.gate.baseline, shown), _WORDS[one.verdict][1]


def _rows(results: Results, condition: ConditionFacts, shown: Labels) -> Iterator[Row]:
    ours = condition.metrics[results.engine]
    if not results.baselines:
        yield from (
            Row(shown.label(name), shown.value(name, value), "", "", "", "", None) for name, value in ours.items()
        )
    for baseline, differences in condition.differences.items():
        for name, found in differences.items():
            better = {"higher": shown.higher_is_better(name), "lower": not shown.higher_is_better(name)}
            better = better if shown.is_visible(found.difference) else {}
            values = (shown.value(name, ours[name]), baseline, shown.value(name, condition.metrics[baseline][name]))
            change = (interval(name, found, shown), found.words)
            yield Row(shown.label(name), *values, *change, better.get(found.words))
        yield Row("same class", "", baseline, f"{condition.agreement[baseline]:.2%}", "", "", None)


def _groups(results: Results, shown: Labels) -> Iterator[tuple[str, str, list[tuple[GroupFacts, list[str]]]]]:
    """Yield each group's name, the label of its first metric, and its rows."""
    for group in dict.fromkeys(one.group for one in results.groups):
        members = [one for one in results.groups if one.group == group][:_LISTED]
        name = next(iter(members[0].metrics[results.engine]), None)
        if name is not None:
            rows = [(one, [shown.value(name, one.metrics[m.name][name]) for m in results.models]) for one in members]
            yield group, shown.label(name), rows


def _sorted_classes(results: Results) -> list[tuple[str, list[str]]]:
    """Return the classes that occur with the intersection over union of each model, the engine's worst first."""
    used = [one for one in results.classes if one.iou[results.engine] == one.iou[results.engine]]
    used.sort(key=lambda one: one.iou[results.engine])
    return [(one.name, [f"{one.iou[model.name]:.2%}" for model in results.models]) for one in used]


def _cells(label: int, row: tuple[int, ...]) -> list[Cell]:
    return [Cell(count, count / max(1, sum(row)), predicted == label) for predicted, count in enumerate(row)]


def command_of(plan: Plan, data: Path, options: EvaluationOptions) -> str:
    """Return the command line that repeats an evaluation."""
    usual = {field.name: field.default for field in fields(EvaluationOptions)}
    words = ["dec-export", "evaluate", str(plan.models[0].bundle), "--data", str(data)]
    repeated: Mapping[str, tuple[object, ...]] = {
        "--engine": (options.engine,),
        "--baseline": tuple(options.baselines),
        "--strength": tuple(f"{strength:g}" for strength in options.strengths),
        "--corruption": tuple(options.corruptions),
        "--severity": tuple(options.severities) if options.corruptions else (),
        "--max-drop": tuple(options.max_drop),
    }
    for name, values in repeated.items():
        words += [word for value in values for word in (name, str(value))]
    numbers = {
        "--limit": options.limit,
        "--threads": options.run.threads,
        "--layout": options.data.layout,
        "--class-index": options.data.class_index,
        "--ignore-index": options.data.ignored,
        "--ray": options.cluster,
        "--seed": options.seed if options.seed != usual["seed"] else None,
        "--batch": options.batch if options.batch != usual["batch"] else None,
    }
    words += [word for name, value in numbers.items() if value is not None for word in (name, str(value))]
    flags = {"--strict": options.strict, "--cpu-fallback": options.run.cpu_fallback}
    words += [name for name, wanted in flags.items() if wanted]
    return shlex.join(words)
