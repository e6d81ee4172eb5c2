"""The report for people: one HTML file that holds everything it shows, and asks no network for anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dec_export.parity import gate
from dec_export.parity.measures.labelled import SEED as LABELLED_SEED
from dec_export.parity.metrics import OutputParity
from dec_export.parity.run import ParityReport, References
from dec_export.report import figures
from dec_export.report.numbers import number
from dec_export.report.pictures import data_uri, examples

Report = Mapping[str, Any]

_TEMPLATE = "parity.html.jinja"
# Failures that are listed before the rest is folded away.
_FEW = 6
# Names of images that are listed.
_MANY = 24
_SELF_EXPLAINING = ("runtime", "version")
_BITS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Figure(NamedTuple):
    """A plot: its data URI, and what it shows in words."""

    source: str
    alt: str


class EngineRow(NamedTuple):
    """What became of one engine."""

    name: str
    gate: str
    detail: str


def render_report(manifest: Mapping[str, Any], reports: Sequence[ParityReport], references: References) -> str:
    """The page for the engines that were run, one at least; the same text for the same arguments.

    manifest: the bundle's, as its JSON. Names of images and texts of errors are untrusted, and escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dec_export", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    environment.tests["beyond"] = _is_beyond
    page = environment.get_template(_TEMPLATE).render(_context(manifest, reports, references))
    # A file's name may hold bytes that are no text.
    return page.encode("utf-8", errors="replace").decode("utf-8")


def _context(manifest: Mapping[str, Any], reports: Sequence[ParityReport], references: References) -> dict[str, Any]:
    contents = [report.content for report in reports]
    preprocessing = manifest["preprocessing"]
    shown, legend = examples(references, reports, preprocessing["mean"], preprocessing["std"])
    precision = _precision(contents[0])
    return {
        "manifest": manifest,
        "recipe": manifest["recipe"],
        "reports": contents,
        "first": contents[0],
        "passed": all(report.passed for report in reports),
        "verdict": _verdict(contents, precision),
        "precision": precision,
        "engines": list(_engines(manifest, contents)),
        "max_ratio": gate.MAX_RATIO,
        "few": _FEW,
        "many": _MANY,
        "error_histogram": _error_histogram(contents),
        "residuals": list(_residuals(contents)),
        "trace": _trace(contents),
        "examples": shown,
        "legend": legend,
        "places": list(_places(references)),
        "curves": list(_curves(contents)),
        "steps": _steps(manifest["recipe"]),
        "equivariance": _equivariance(contents, manifest["recipe"]),
        "labelled_seed": LABELLED_SEED,
    }


def _steps(recipe: Mapping[str, Any]) -> int:
    """Evaluations of f in one solve; none without canonicalizers."""
    canonicalizer = recipe["canonicalizer"]
    return 0 if canonicalizer is None else int(canonicalizer["max_iter"]) + 1


def _precision(report: Report) -> str:
    """The formats of backbone and solver, once when they are the same."""
    return "/".join(dict.fromkeys(_BITS[name] for name in report["precision"].values()))


def _verdict(reports: Sequence[Report], precision: str) -> str:
    """Why the gate was passed, or not, in one sentence."""
    failing = [report for report in reports if report["gate"] != "pass"]
    if not failing:
        phis = " and every solved phi" if all(report["phi"] for report in reports) else ""
        return (
            f"{_listed([report['engine'] for report in reports])}: every output{phis} is within "
            f"{gate.MAX_RATIO:g} times the noise floor of {precision} around the float64 reference, and "
            f"{reports[0]['invariance']['metric']} is the reference's, on {reports[0]['samples']} images."
        )
    return "; ".join(map(_departure, failing)) + "."


def _departure(report: Report) -> str:
    """Where a failing engine first leaves the reference."""
    place = report["trace"]["place"]
    if place is None:
        return f"{report['engine']} breaks the gate's rule, though no tensor on its way leaves the noise floor"
    return f"{report['engine']} leaves the reference at {place}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _engines(manifest: Mapping[str, Any], reports: Sequence[Report]) -> Iterator[EngineRow]:
    """The engines of this report, then what the manifest says of others."""
    for report in reports:
        yield EngineRow(report["engine"], report["gate"], _details(report["engine_details"]))
    for name, entry in manifest["engines"].items():
        if name not in {report["engine"] for report in reports}:
            told = {key: value for key, value in entry.items() if key not in ("gate", "reason")}
            when = " when the bundle was built" if entry["gate"] in ("pass", "fail") else ""
            yield EngineRow(name, f"{entry['gate']}{when}", entry.get("reason") or _details(told))


def _details(facts: Mapping[str, Any]) -> str:
    """`runtime` and `version` as they are, the rest with their names."""
    named = [f"{key.replace('_', ' ')} {_word(value)}" for key, value in facts.items() if key not in _SELF_EXPLAINING]
    return ", ".join([" ".join(_word(facts[key]) for key in _SELF_EXPLAINING if key in facts), *named])


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _is_beyond(entry: Mapping[str, Any]) -> bool:
    """Whether a tensor of a report breaks the gate's rule."""
    numbers: dict[str, Any] = {key: math.nan if value is None else value for key, value in entry.items()}
    return gate.leaves_the_noise(OutputParity(**numbers))


def _figure(svg: str, alt: str) -> Figure:
    return Figure(data_uri("image/svg+xml", svg.encode()), alt)


def _error_histogram(reports: Sequence[Report]) -> Figure | None:
    svg = figures.error_histogram(reports)
    names = _listed(["the float32 reference", *(report["engine"] for report in reports)])
    alt = f"Histogram of the distances of single logits from float64, of {names}."
    return None if svg is None else _figure(svg, alt)


def _residuals(reports: Sequence[Report]) -> Iterator[Figure]:
    for layer, solver in reports[0]["solver"].items():
        svg = figures.residuals(reports, layer)
        if svg is not None:
            told = ", ".join(number(value) for value in solver["reference"] or [])
            name = layer.removeprefix("phi_")
            yield _figure(svg, f"Residuals of canonicalizer {name}, iteration by iteration; float64 reference: {told}.")


def _trace(reports: Sequence[Report]) -> Figure:
    firsts = [f"{report['engine']} {report['trace']['first'] or 'never'}" for report in reports]
    alt = (
        "Distance over noise floor of every tensor in the order of computation, with the gate at "
        f"{gate.MAX_RATIO:g}. First beyond it: {', '.join(firsts)}."
    )
    return _figure(figures.trace(reports), alt)


def _curves(reports: Sequence[Report]) -> Iterator[Figure]:
    """Score and InvE or EqE at every scale, where there are labels."""
    facts = reports[0]["labelled"]
    if facts is not None:
        yield _figure(figures.scores(reports), f"{facts['score']} at every scale; the numbers are in the table.")
        yield _figure(figures.invariance(reports), f"{facts['metric']} at every scale; the numbers are in the table.")


def _equivariance(reports: Sequence[Report], recipe: Mapping[str, Any]) -> Figure | None:
    """The errors of every block's map, where they were measured, block by block."""
    if reports[0]["equivariance"] is None:
        return None
    svg = figures.equivariance(reports, recipe["backbone"]["cls_insert_layer"])
    return _figure(svg, "Equivariance error of the feature map of every block; the numbers are in the table.")


def _places(references: References) -> Iterator[str]:
    """What each canonicalizer's solution warps in the model."""
    for place, phi in sorted(references.places.items()):
        what = "the input image" if place < 0 else f"the input of block or stage {place}"
        yield f"canonicalizer {phi} warps {what}"
