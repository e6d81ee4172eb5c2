"""Tables for people. Proofs come as reports; the other facts as the dictionaries that `--json` prints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dec_export.parity.measures.trace import Trace
from dec_export.parity.numbers import number
from dec_export.parity.presentation import Table as PlainTable
from dec_export.parity.report import Report


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


def parity(report: Report) -> RenderableType:
    """The distances of one engine, the gate's verdict, and what else was measured."""
    rows = [row for section in report.sections for row in section.rows()]
    summary = {
        "gate": report.gate.upper(),
        "rule": report.gate_rule,
        **dict(rows),
        **({"failures": "; ".join(report.failures)} if report.failures else {}),
    }
    # The distances are the first section of every report.
    distances, *others = (_drawn(found) for section in report.sections for found in section.tables(report))
    return Group(distances, key_values("", summary), *others)


def traced(report: Report) -> RenderableType:
    """What `parity` shows, and where the engine leaves the reference, tensor by tensor."""
    trace = report[Trace]
    return Group(parity(report), _drawn(trace.tensor_table(report)), Text(trace.verdict))


def _drawn(found: PlainTable) -> Table:
    return table(found.title, found.columns, found.rows, numbers=found.columns[1:])


def inspection(facts: Mapping[str, Any]) -> RenderableType:
    """What `inspect` prints."""
    weights = facts["weights"]
    summary = key_values(
        "Bundle",
        {
            "recipe": f"{facts['recipe']['name']} ({facts['recipe']['backbone']['timm']})",
            "weights": weights["detail"],
            "solver": f"{facts['solver']}, convolutions in {facts['solver_precision']}"
            if facts["recipe"]["canonicalizer"]
            else "none, a backbone alone",
            "precision of the backbone": facts["precision"],
            "opset": facts["opset"],
            "gate": facts["gate"],
            "inputs": _tensors(facts["inputs"]),
            "outputs": _tensors(facts["outputs"]),
            "nodes": facts["nodes"],
            **({"dec operators": _dec_operators(facts["dec_operators"])} if facts["dec_operators"] else {}),
            "initializers": f"{facts['initializers']['count']}, {facts['initializers']['bytes'] / 1e6:.1f} MB",
        },
    )
    operators = table("Operators", ("operator", "count"), facts["operators"].items(), numbers=("count",))
    tensors = table(
        "Largest tensors (of one sample)",
        ("tensor", "kind", "dtype", "shape", "MB"),
        (
            (t["name"], t["kind"], t["dtype"], ", ".join(map(str, t["shape"])), f"{t['bytes'] / 1e6:.2f}")
            for t in facts["largest_tensors"]
        ),
        numbers=("MB",),
    )
    files = table(
        "Files", ("file", "bytes"), ((name, entry["size"]) for name, entry in facts["files"].items()), ("bytes",)
    )
    return Group(summary, operators, tensors, *_plans(facts), files)


def _plans(facts: Mapping[str, Any]) -> Iterable[RenderableType]:
    """For each TensorRT engine: what it is for, and what it holds."""
    for name, entry in facts["plans"].items():
        held = facts["engine_layers"][name]
        yield plan(name, entry, {"inputs and outputs": _tensors(held["bindings"])})
        yield table(
            f"Largest tensors in {name} (of one sample)",
            ("layer", "kind", "dtype", "shape", "MB"),
            (
                (t["layer"], t["kind"], t["dtype"], ", ".join(map(str, t["shape"])), f"{t['bytes'] / 1e6:.2f}")
                for t in held["largest_tensors"]
            ),
            numbers=("MB",),
        )


def _dec_operators(counts: Mapping[str, int]) -> str:
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{sum(counts.values())} in the solves: {listed}"


def _tensors(tensors: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{t['name']} {t['dtype']} ({', '.join(map(str, t['shape']))})" for t in tensors)


def plan(name: str, entry: Mapping[str, Any], more: Mapping[str, object] | None = None) -> RenderableType:
    """What a TensorRT engine is for, and what was read back from it."""
    smallest, likeliest, largest = entry["options"]["batch"]
    found = ", ".join(
        f"{n['graph']} in {dtype} ({n['found']} found in the engine)" for dtype, n in entry["precision"].items()
    )
    layers, plugin = entry["layers"], entry["plugin"]
    memory = entry["peak_memory_bytes"]
    return key_values(
        f"Engine {name}",
        {
            "built with": f"version {entry['version']}, CUDA {entry['cuda'] or 'unknown'}, in {entry['seconds']:.0f} s"
            + (f" and {memory / 1e9:.1f} GB" if memory else ""),
            "for compute capability": ", ".join(entry["compute_capabilities"])
            + (" and later" if entry["and_later"] else ""),
            "batch": f"{smallest} to {largest}, tuned for {likeliest}",
            "matrix products": found,
            **({"plugin": ("used: " if plugin["used"] else "not used: ") + plugin["detail"]} if plugin else {}),
            "layers": f"{layers['count']}: " + ", ".join(f"{n} {dtype}" for dtype, n in layers["by_dtype"].items()),
            "by type": ", ".join(f"{n} {kind}" for kind, n in layers["by_type"].items()),
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


def backbones(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """What `backbones` prints."""
    return table(
        "Shipped recipes",
        ("name", "timm model", "image", "coarse resolutions"),
        ((r["name"], r["timm"], r["image_size"], ", ".join(map(str, r["coarse_resolution"]))) for r in rows),
    )


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
