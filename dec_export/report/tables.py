"""Tables for people; the facts come as the same dictionaries that `--json` prints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dec_export.bundle.plans import PlanEntry
from dec_export.report.numbers import number


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], numbers: Collection[str] = ()) -> Table:
    """A plain table; the columns named in `numbers` are aligned to the right."""
    result = Table(title=Text(title), title_justify="left", header_style="bold")
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


def key_values(title: str, values: Mapping[str, object]) -> Table:
    """A two-column table without a header."""
    result = Table(title=Text(title), title_justify="left", show_header=False)
    result.add_column(no_wrap=True)
    result.add_column(overflow="fold")
    for key, value in values.items():
        result.add_row(key, Text(str(value)))
    return result


def parity(report: Mapping[str, Any]) -> RenderableType:
    """The parity table of one engine."""
    precision = report["precision"]
    kind = "float32" if set(precision.values()) == {"fp32"} else "/".join(precision.values())
    columns = ("tensor", "max abs", "rel L2", f"rel L2 of {kind} reference", "ratio", "typical ratio")
    distances = table(
        f"Distance from the float64 reference: {report['engine']} {report['engine_details'].get('version', '')}, "
        f"{report['samples']} images ({report['images']['source']})",
        columns,
        (
            (
                name,
                *(number(p[k]) for k in ("max_abs", "rel_l2", "rel_l2_reference")),
                number(p["ratio"], ".2f"),
                number(p["typical_ratio"], ".2f"),
            )
            for name, p in {**report["outputs"], **report["phi"]}.items()
        ),
        numbers=columns[1:],
    )
    invariance = report["invariance"]
    gains = ", ".join(
        f"{layer} {number(g['random'], '.1f')} (largest {number(g['largest'], '.1f')})"
        for layer, g in report["amplification"].items()
    )
    summary = key_values(
        "",
        {
            "gate": report["gate"].upper(),
            "rule": report["gate_rule"],
            "top-1 agreement": f"{report['top1_agreement']:.1%} "
            f"(float32 reference: {report['top1_agreement_reference_fp32']:.1%})",
            invariance["metric"]: f"engine {number(invariance['engine'], '.6f')}, "
            f"float64 reference {number(invariance['reference'], '.6f')} (they differ by "
            f"{number(invariance['deviation'], '.2%')}, allowed {number(invariance['bound'], '.2%')})",
            **({"growth of a change of phi in one step": gains} if gains else {}),
            **({"failures": "; ".join(report["failures"])} if report["failures"] else {}),
        },
    )
    return Group(
        distances,
        summary,
        *([_labelled(report["labelled"])] if report["labelled"] else []),
        *([_equivariance(report["equivariance"])] if report["equivariance"] else []),
    )


def _equivariance(facts: Mapping[str, Any]) -> RenderableType:
    """How every block's map follows turns, flips and scales; g by g for the map that is an output."""
    tap = None if facts["tap"] is None else str(facts["tap"])
    columns = ("image is", "error, reference", "error, engine", "unaligned", "cosine, reference", "cosine, engine")
    keys = ("reference", "engine", "unaligned", "cosine_reference", "cosine_engine")
    blocks = facts["layers"]
    by_action = [
        table(
            f"Equivariance of the map after block {place}, {facts['images']} images",
            columns,
            ((name, *(number(entry[key], ".4f") for key in keys)) for name, entry in blocks[place].items()),
            numbers=columns[1:],
        )
        for place in blocks
        if place == tap
    ]
    rows = ((place, *(_mean(entry[key] for entry in by.values()) for key in keys)) for place, by in blocks.items())
    title = "Equivariance of every block's map, mean over all turns, flips and scales"
    return Group(*by_action, table(title, ("block", *columns[1:]), rows, numbers=columns[1:]))


def _mean(values: Iterable[float | None]) -> str:
    found = list(values)
    finite = [value for value in found if value is not None]
    return number(sum(finite) / len(finite) if len(finite) == len(found) > 0 else None, ".4f")


def _labelled(facts: Mapping[str, Any]) -> RenderableType:
    """Scores at every scale, of reference and engine."""
    rows = []
    for name, title in (("plain", ""), ("locally_scaled", ", locally scaled"), ("invariance", "")):
        what = facts["metric"] if name == "invariance" else facts["score"]
        for who in ("reference", "engine"):
            values = facts[who][name]
            shown = (number(v, ".4f") if name == "invariance" else number(v, ".1%") for v in values)
            rows.append((f"{what}{title}, {'float32 reference' if who == 'reference' else who}", *shown))
    scales = list(map(str, facts["scales"]))
    return table(f"At every scale, {facts['images_per_scale']} images each", ("", *scales), rows, numbers=scales)


def traced(report: Mapping[str, Any]) -> RenderableType:
    """The parity table, and where the engine leaves the reference, tensor by tensor."""
    facts = report["trace"]
    columns = ("tensor", "rel L2", "rel L2 of reference", "ratio", "typical ratio")
    tensors = table(
        f"Tensors of {report['engine']} in the order of computation",
        columns,
        (
            (
                f"{name}  <- first beyond the noise" if name == facts["first"] else name,
                *(number(entry[k]) for k in ("rel_l2", "rel_l2_reference")),
                *(number(entry[k], ".2f") for k in ("ratio", "typical_ratio")),
            )
            for name, entry in facts["tensors"].items()
        ),
        numbers=columns[1:],
    )
    missing = f"; the engine does not show {facts['missing']} of the reference's tensors" if facts["missing"] else ""
    verdict = Text(f"First beyond the noise floor: {facts['place'] or 'nothing'}{missing}.")
    return Group(parity(report), tensors, verdict)


def plan(name: str, entry: PlanEntry, more: Mapping[str, object] | None = None) -> RenderableType:
    """What a TensorRT engine is for, and what was read back from it."""
    smallest, likeliest, largest = entry.options.batch
    found = ", ".join(
        f"{products.graph} in {dtype} ({products.found} found in the engine)"
        for dtype, products in entry.precision.items()
    )
    layers, plugin, memory = entry.layers, entry.plugin, entry.peak_memory_bytes
    return key_values(
        f"Engine {name}",
        {
            "built with": f"version {entry.version}, CUDA {entry.cuda or 'unknown'}, in {entry.seconds:.0f} s"
            + (f" and {memory / 1e9:.1f} GB" if memory else ""),
            "for compute capability": entry.capabilities,
            "batch": f"{smallest} to {largest}, tuned for {likeliest}",
            "matrix products": found,
            **({"plugin": ("used: " if plugin.used else "not used: ") + plugin.detail} if plugin else {}),
            "layers": f"{layers.count}: " + ", ".join(f"{n} {dtype}" for dtype, n in layers.by_dtype.items()),
            "by type": ", ".join(f"{n} {kind}" for kind, n in layers.by_type.items()),
            **(more or {}),
        },
    )


def bench(report: Mapping[str, Any]) -> RenderableType:
    """What `bench` prints."""
    machine, peaks = report["machine"], report["peaks"]
    tables = [
        table(
            f"{report['recipe']}, {report['precision']}, batch {entry['batch']}: {entry['graph']['flops'] / 1e9:.1f} "
            f"GFLOP, {entry['graph']['bytes'] / 1e9:.2f} GB unfused",
            ("subject", "median ms", "quartiles", "images/s", "peak memory"),
            (
                (
                    name,
                    f"{row['median'] * 1e3:.1f}",
                    f"{row['quartile_low'] * 1e3:.1f} - {row['quartile_high'] * 1e3:.1f}",
                    f"{row['images_per_second']:.1f}",
                    _memory_cell(report, entry["batch"], name),
                )
                for name, row in entry["subjects"].items()
            ),
            numbers=("median ms", "quartiles", "images/s", "peak memory"),
        )
        for entry in report["batches"]
    ]
    summary = {
        f"{name}, batch {entry['batch']}": _bench_line(row)
        for entry in report["batches"]
        for name, row in entry["subjects"].items()
        if "ratio_to" in row
    }
    context = key_values(
        "",
        {
            "machine": f"{machine['processor']}, {report['threads']} threads, {report['rounds']} interleaved rounds",
            "measured peaks": f"{peaks['flops'] / 1e9:.0f} GFLOP/s, {peaks['bytes'] / 1e9:.1f} GB/s",
            **summary,
        },
    )
    return Group(*tables, context)


def _bench_line(row: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{value:.2f}x faster than {name}" for name, value in row["ratio_to"].items())
    overhead = "" if row["overhead"] is None else f"; DEC costs {row['overhead']:.2f}x the plain backbone's time"
    return f"{ratios}; {row['share_of_peak_flops']:.0%} of the peak FLOP/s{overhead}"


def _memory_cell(report: Mapping[str, Any], batch: int, name: str) -> str:
    used = report["peak_memory_bytes"].get(name)
    if not used or batch != report["peak_memory_batch"]:
        return ""
    return f"{used['peak'] / 1e6:.0f} MB (before: {used['before'] / 1e6:.0f})"


def doctor(facts: Mapping[str, Any]) -> RenderableType:
    """What `doctor` prints."""
    machine = key_values("This machine", {k.replace("_", " "): v for k, v in facts["machine"].items()})
    libraries = key_values(
        "Libraries", {name: version or "not installed" for name, version in facts["libraries"].items()}
    )
    engines = table(
        "Engines",
        ("engine", "builds", "runs", "detail"),
        ((e["name"], _yes(e["can_build"]), _yes(e["can_run"]), e["detail"]) for e in facts["engines"]),
    )
    more = key_values(
        "",
        {
            "ONNX Runtime providers": ", ".join(facts["onnxruntime_providers"]) or "none",
            "TensorRT plugin": f"{_yes(facts['plugin']['available'])}: {facts['plugin']['detail']}",
        },
    )
    photographs = key_values(
        "Default photographs", {"found": facts["photographs"]["count"], "": facts["photographs"]["detail"]}
    )
    return Group(machine, libraries, engines, more, photographs)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def server(facts: Mapping[str, Any]) -> RenderableType:
    """What `triton check` prints."""
    latency = ", ".join(f"{name} {value:.1f}" for name, value in facts["latency_ms"].items())
    found = facts["comparison"]
    compared = "nothing: name a --bundle"
    if found:
        logits = "identical" if found["identical"] else f"differ by {number(found['max_difference'])} of the largest"
        compared = (
            f"{found['engine']}: {found['same_answers']} of {found['answers']} answers are the same, logits {logits}, "
            f"allowed {found['tolerance']:.1e}"
        )
    summary = key_values(
        f"Server {facts['url']} ({facts['protocol']})",
        {
            "ensemble": facts["ensemble"],
            "requests": f"{facts['requests']}, of {facts['images']} images",
            "latency in ms": latency,
            "compared with": compared,
        },
    )
    columns = ("model", *next(iter(facts["statistics"].values())))
    rows = ((name, *counts.values()) for name, counts in facts["statistics"].items())
    return Group(summary, table("The server's own counts", columns, rows, numbers=columns[1:]))
