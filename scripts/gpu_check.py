"""Build DEC-DeiT-S for every engine of this machine, in float32 and float16, prove each on the GPU, print one table.

Each engine runs in a process of its own: one that crashes is a line of the table, and Polygraphy drives one TensorRT
in a process. Exit 0: every engine that can run passed its gate; 1: one failed; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from dec_export.children import python_command
from dec_export.doctor import examine_machine
from dec_export.engines.registry import availability, engine_specs
from dec_export.engines.tensorrt.flavours import TENSORRT
from dec_export.gpu import find_gpu, why_no_gpu
from dec_export.report.tables import table

# What `auto` may choose, the simplest first.
ENGINES = tuple(spec.name for spec in reversed(engine_specs()) if spec.automatic)
# The plugin is TensorRT's own; elsewhere its operators are their bodies, which is the unrolled form.
SUBJECTS = (*((engine, "unroll") for engine in ENGINES), (TENSORRT.name, "plugin"))
# Formats of the backbone and of the solver's convolutions.
PRECISIONS = (("fp32", "fp32"), ("fp16", "fp32"), ("fp32", "fp16"))
COLUMNS = ("engine", "solver", "precision", "gate", "logits, ratio", "worst phi, ratio", "top-1", "seconds", "detail")


def check(engine: str, solver: str, precision: str, solver_precision: str, out: Path, backbone: str) -> dict[str, Any]:
    """Build and prove one engine; the row of the table."""
    command = [
        *python_command("from dec_export.cli import main\nmain()"),
        "build",
        "--backbone",
        backbone,
        "--precision",
        precision,
        "--engine",
        engine,
        "--solver",
        solver,
        "--solver-precision",
        solver_precision,
        "--expose-phi",
        "--force",
        "--json",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own command
    row: dict[str, Any] = {"engine": engine, "solver": solver, "precision": f"{precision}, {solver_precision}"}
    try:
        facts = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {**row, "gate": f"ended with {done.returncode}", "detail": last[0]}
    if "error" in facts:
        return {**row, "gate": "error", "detail": facts["error"]}
    plugin = (facts["plans"].get(engine) or {}).get("plugin")
    if solver == "plugin" and not (plugin and plugin["used"]):
        return {**row, "gate": "no plugin", "detail": (plugin or {}).get("detail", "the engine was not built")}
    report = (facts["parity"] or {"engines": {}})["engines"].get(engine)
    if report is None:
        return {**row, "gate": "not run", "detail": facts["engines"][engine]["reason"]}
    return {
        **row,
        "gate": report["gate"],
        "logits, ratio": f"{report['outputs']['logits']['ratio']:.2f}",
        "worst phi, ratio": f"{max(entry['ratio'] for entry in report['phi'].values()):.2f}",
        "top-1": f"{report['top1_agreement']:.0%}",
        "seconds": f"{facts['seconds']:.0f}",
        "detail": f"{report['engine_details']['runtime']} {report['engine_details']['version']}"
        + (f"; {'; '.join(report['failures'])}" if report["failures"] else ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="folder for bundles and results.json")
    parser.add_argument("--backbone", default="deit_s", help="recipe to build")
    options = parser.parse_args()
    gpu = find_gpu()
    if gpu is None:
        print(f"gpu_check needs a GPU, and {why_no_gpu()}.", file=sys.stderr)
        sys.exit(2)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for precision, solver_precision in PRECISIONS:
        for engine, solver in SUBJECTS:
            found = availability(engine, gpu)
            if not found.can_run:
                row = {"engine": engine, "solver": solver, "precision": f"{precision}, {solver_precision}"}
                rows.append({**row, "gate": "cannot run", "detail": found.detail})
                continue
            print(f"{engine}, {solver}, {precision}, {solver_precision} ...", file=sys.stderr)
            bundle = options.out / f"{options.backbone}-{engine}-{solver}-{precision}-{solver_precision}"
            rows.append(check(engine, solver, precision, solver_precision, bundle, options.backbone))
            shutil.rmtree(bundle, ignore_errors=True)
    machine = examine_machine()
    results = {"machine": machine.model_dump(mode="json"), "rows": rows}
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    title = f"DEC {options.backbone} on {machine.machine.gpu}, driver {machine.machine.nvidia_driver}"
    cells = ([row.get(column, "") for column in COLUMNS] for row in rows)
    Console(width=200).print(table(f"{title}, Python {platform.python_version()}", COLUMNS, cells))
    sys.exit(1 if any(row["gate"] not in ("pass", "cannot run") for row in rows) else 0)


if __name__ == "__main__":
    main()
