"""The report as one HTML file, which holds everything that it shows and needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from dec_export.bundle.manifest import Manifest
from dec_export.formats import Format
from dec_export.parity import gate
from dec_export.parity.measures.base import Section
from dec_export.parity.measures.distances import Distances
from dec_export.parity.measures.equivariance import Equivariance
from dec_export.parity.measures.invariance import Invariance
from dec_export.parity.measures.labelled import SEED as LABELLED_SEED
from dec_export.parity.measures.trace import Trace
from dec_export.parity.numbers import number
from dec_export.parity.presentation import Curves, Figure
from dec_export.parity.references import References
from dec_export.parity.report import Report
from dec_export.recipe.model import Recipe
from dec_export.report.figures import Owned, draw, listed
from dec_export.report.pictures import data_uri, examples

_TEMPLATE = "parity.html.jinja"
# The number of failures that are listed; the others are folded.
_LISTED_FAILURES = 6
# The number of images whose names are listed.
_LISTED_IMAGES = 24
_SELF_EXPLAINING = ("runtime", "version")
# The parts of the page in their order; the parts of other measures come before the provenance.
_FIRST = (
    "distances",
    "errors",
    "solver",
    "trace",
    "images",
    "scales",
    "local_scales",
    "consistency",
    "scale_pairs",
    "equivariance",
    "amplification",
)
_IMAGES, _PROVENANCE = ("images", "Images"), ("provenance", "Provenance")


class Plot(NamedTuple):
    """A plot, by its data URI and a description in words."""

    source: str
    alt: str


class Part(NamedTuple):
    """A part of the page, with its anchor, its heading in the list of contents, its template and its plots."""

    name: str
    heading: str
    template: str
    plots: list[Plot]


class Engine(NamedTuple):
    """One engine's report, and its sections by their names."""

    report: Report
    sections: dict[str, Section]


class EngineRow(NamedTuple):
    """The result of one engine in the list of engines."""

    name: str
    gate: str
    detail: str


def render_report(manifest: Manifest, reports: Sequence[Report], references: References) -> str:
    """Return the page for one or more engines; equal arguments give equal text.

    Names of images and texts of errors are escaped, because they are not trusted.
    """
    environment = templates()
    environment.tests["beyond"] = gate.exceeds_noise
    parts = list(_parts(reports, manifest.recipe, environment.list_templates()))
    page = environment.get_template(_TEMPLATE).render(parts=parts, **_context(manifest, reports, references))
    return as_text(page)


def templates() -> Environment:
    """Return the templates of all pages, which escape every text that they are given."""
    environment = Environment(
        loader=PackageLoader("dec_export", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    return environment


def as_text(page: str) -> str:
    """Return a page without what UTF-8 cannot write: a file's name may hold bytes that are not text."""
    return page.encode("utf-8", errors="replace").decode("utf-8")


def plotted(owned: Sequence[Owned]) -> Plot:
    """Return figures of one key, drawn into one plot."""
    drawn = draw(owned)
    return Plot(data_uri("image/svg+xml", drawn.svg.encode()), drawn.alt)


def _context(manifest: Manifest, reports: Sequence[Report], references: References) -> dict[str, object]:
    """Return the variables of the templates besides their parts."""
    engines = [Engine(report, {section.name: section for section in report.sections}) for report in reports]
    shown, legend = examples(references, reports, manifest.preprocessing.mean, manifest.preprocessing.std)
    precision = _precision(reports[0])
    return {
        "manifest": manifest,
        "recipe": manifest.recipe,
        "engines": engines,
        "first": engines[0],
        "passed": all(report.passed for report in reports),
        "verdict": _verdict(reports, precision),
        "precision": precision,
        "engine_rows": list(_engine_rows(manifest, reports)),
        "max_ratio": gate.MAX_RATIO,
        "listed_failures": _LISTED_FAILURES,
        "listed_images": _LISTED_IMAGES,
        "examples": shown,
        "legend": legend,
        "places": list(_places(references)),
        "steps": _steps(manifest.recipe),
        "labelled_seed": LABELLED_SEED,
    }


def _parts(reports: Sequence[Report], recipe: Recipe, templates: Sequence[str]) -> Iterator[Part]:
    """Yield the part of each measured section with a heading, and the parts of images and of provenance.

    The part of a measure without a template of its own shows the section's plots and rows.
    """
    sections = {section.name: section for section in reports[0].sections if section.heading and section.measured}
    headings = {name: str(section.heading) for name, section in sections.items()} | dict([_IMAGES])
    known = [name for name in _FIRST if name in headings]
    for name in [*known, *(name for name in headings if name not in known)]:
        own = f"parts/{name}.html.jinja"
        plots = list(_plots(name, reports, recipe))
        yield Part(name, headings[name], own if own in templates else "parts/other.html.jinja", plots)
    name, heading = _PROVENANCE
    yield Part(name, heading, f"parts/{name}.html.jinja", [])


def _plots(name: str, reports: Sequence[Report], recipe: Recipe) -> Iterator[Plot]:
    """Yield the figures of a section, each with the results of all engines."""
    by_key: dict[str, list[Owned]] = {}
    for index, report in enumerate(reports):
        for section in report.sections:
            for figure in section.figures() if section.name == name else []:
                by_key.setdefault(figure.key, []).append(Owned(report.engine, index, _marked(name, figure, recipe)))
    for owned in by_key.values():
        yield plotted(owned)


def _marked(name: str, figure: Figure, recipe: Recipe) -> Figure:
    """Return a figure, with a mark where a late class token enters if its x axis shows the blocks."""
    inserted = recipe.backbone.cls_insert_layer
    if name != Equivariance.name or not inserted or not isinstance(figure, Curves):
        return figure
    return replace(figure, mark=(inserted - 0.5, "class token"))


def _steps(recipe: Recipe) -> int:
    """Return the number of evaluations of f in one solve, which is zero without canonicalizers."""
    return 0 if recipe.deep_equilibrium is None else recipe.deep_equilibrium.steps


def _precision(report: Report) -> str:
    """Return the formats of the backbone and of the solver, or one format if they are equal."""
    return "/".join(dict.fromkeys(Format(name).label for name in report.precision.formats))


def _verdict(reports: Sequence[Report], precision: str) -> str:
    """Return a sentence that says why the gate passed or failed."""
    failing = [report for report in reports if not report.passed]
    if not failing:
        phis = " and every solved phi" if all(report[Distances].phi for report in reports) else ""
        return (
            f"{listed([report.engine for report in reports])}: every output{phis} is within "
            f"{gate.MAX_RATIO:g} times the noise floor of {precision} around the float64 reference, and "
            f"{reports[0][Invariance].invariance.metric} is the reference's, on {reports[0].samples} images."
        )
    return "; ".join(map(_departure, failing)) + "."


def _departure(report: Report) -> str:
    """Return a clause that says where a failing engine first leaves the reference."""
    place = report[Trace].trace.place
    if place is None:
        return f"{report.engine} breaks the gate's rule, though no tensor on its way leaves the noise floor"
    return f"{report.engine} leaves the reference at {place}"


def _engine_rows(manifest: Manifest, reports: Sequence[Report]) -> Iterator[EngineRow]:
    """Yield the results of the engines of this report, then those of other engines in the manifest."""
    for report in reports:
        yield EngineRow(report.engine, report.gate, _details(report.engine_details))
    for name, entry in manifest.engines.items():
        if name not in {report.engine for report in reports}:
            when = " when the bundle was built" if entry.gate in ("pass", "fail") else ""
            yield EngineRow(name, f"{entry.gate}{when}", entry.reason or _details(entry.details))


def _details(facts: Mapping[str, object]) -> str:
    """Return the facts in words: `runtime` and `version` without their names, and the others with their names."""
    named = [f"{key.replace('_', ' ')} {_word(value)}" for key, value in facts.items() if key not in _SELF_EXPLAINING]
    return ", ".join([" ".join(_word(facts[key]) for key in _SELF_EXPLAINING if key in facts), *named])


def _word(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _places(references: References) -> Iterator[str]:
    """Yield a clause for each place of the model, which says which canonicalizer warps it."""
    for place, phi in sorted(references.places.items()):
        what = "the input image" if place < 0 else f"the input of block or stage {place}"
        yield f"canonicalizer {phi} warps {what}"
