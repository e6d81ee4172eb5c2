"""Build a model for every engine of this machine, prove each engine on the GPU, and print one table.

    python scripts/gpu_check.py [--backbone deit_s] [--out build/gpu-check]

Every engine is built in float32 and in float16, and in a process of its own, for two reasons: an engine that crashes
then costs one line of the table and not the others, and one process can only use one of the two kinds of TensorRT. The
exit status is 0 when every engine that can run passed its gate, 1 when one failed, and 2 when there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dec_export.children import python_command
from dec_export.doctor import examine_machine
from dec_export.engines.registry import availability, engine_specs
from dec_export.engines.tensorrt.flavours import TENSORRT
from dec_export.gpu import Gpu, find_gpu, why_no_gpu
from dec_export.report.tables import table

# These are the engines that `auto` may choose; the simplest comes first.
ENGINES = tuple(spec.name for spec in reversed(engine_specs()) if spec.automatic)
# Engines with the form of the solver. Only TensorRT has the plugin; the other engines would run the bodies of its
# operators, which are the unrolled form again.
SUBJECTS = (*((engine, "unroll") for engine in ENGINES), (TENSORRT.name, "plugin"))
# The format of the backbone and that of the solver's convolutions.
PRECISIONS = (("fp32", "fp32"), ("fp16", "fp32"), ("fp32", "fp16"))


@dataclass(frozen=True)
class Case:
    """What is built: an engine, the form of the solver, the precision of the backbone and that of the solver."""

    engine: str
    solver: str
    precision: str
    solver_precision: str

    @property
    def label(self) -> str:
        """The case as part of a folder's name."""
        return f"{self.engine}-{self.solver}-{self.precision}-{self.solver_precision}"


@dataclass(frozen=True)
class Row:
    """What happened to a case.

    gate: pass or fail, or why there is no verdict. detail: the version of the engine and what failed, or the reason.
    numbers: what the gate measured, under the names of its columns; empty when there is no verdict.
    """

    case: Case
    gate: str
    detail: str
    numbers: Mapping[str, str]

    @classmethod
    def without_verdict(cls, case: Case, gate: str, detail: str) -> Row:
        """A row of an engine that was not put through the gate."""
        return cls(case, gate, detail, {})

    def as_json(self) -> dict[str, str]:
        """The row as results.json has it, and with the keys that are the columns of the table."""
        precision = f"{self.case.precision}, {self.case.solver_precision}"
        head = {"engine": self.case.engine, "solver": self.case.solver, "precision": precision, "gate": self.gate}
        return {**head, **self.numbers, "detail": self.detail}


NUMBERS = ("logits, ratio", "worst phi, ratio", "top-1", "seconds")
COLUMNS = ("engine", "solver", "precision", "gate", *NUMBERS, "detail")


def check(case: Case, backbone: str, bundle: Path) -> Row:
    """Build and prove one engine in a process of its own; the bundle is written to the folder `bundle`."""
    command = [
        *python_command("from dec_export.cli import main\nmain()"),
        *("build", "--backbone", backbone, "--precision", case.precision, "--engine", case.engine),
        *("--solver", case.solver, "--solver-precision", case.solver_precision),
        *("--expose-phi", "--force", "--json", "--out", str(bundle)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - the command is our own
    try:
        facts = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return Row.without_verdict(case, f"ended with {done.returncode}", last[0])
    return row_of(case, facts)


def row_of(case: Case, facts: Mapping[str, Any]) -> Row:  # The JSON of another process has no type.
    """The row of a case, from what `dec-export build --json` printed."""
    if "error" in facts:
        return Row.without_verdict(case, "error", facts["error"])
    plugin = (facts["plans"].get(case.engine) or {}).get("plugin")
    if case.solver == "plugin" and not (plugin and plugin["used"]):
        return Row.without_verdict(case, "no plugin", (plugin or {}).get("detail", "the engine was not built"))
    report = (facts["parity"] or {"engines": {}})["engines"].get(case.engine)
    if report is None:
        return Row.without_verdict(case, "not run", facts["engines"][case.engine]["reason"])
    values = (
        f"{report['outputs']['logits']['ratio']:.2f}",
        f"{max(entry['ratio'] for entry in report['phi'].values()):.2f}",
        f"{report['top1_agreement']:.0%}",
        f"{facts['seconds']:.0f}",
    )
    version = f"{report['engine_details']['runtime']} {report['engine_details']['version']}"
    detail = "; ".join([version, *report["failures"]])
    return Row(case, report["gate"], detail, dict(zip(NUMBERS, values, strict=True)))


def check_all(backbone: str, out: Path, gpu: Gpu) -> list[Row]:
    """Check every engine in every precision, and delete each bundle from the folder `out` afterwards."""
    rows = []
    for precision, solver_precision in PRECISIONS:
        for engine, solver in SUBJECTS:
            case = Case(engine, solver, precision, solver_precision)
            found = availability(engine, gpu)
            if not found.can_run:
                rows.append(Row.without_verdict(case, "cannot run", found.detail))
                continue
            print(f"{engine}, {solver}, {precision}, {solver_precision} ...", file=sys.stderr)
            bundle = out / f"{backbone}-{case.label}"
            rows.append(check(case, backbone, bundle))
            shutil.rmtree(bundle, ignore_errors=True)
    return rows


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/gpu-check"),
        help="folder for bundles and results.json (default: %(default)s)",
    )
    parser.add_argument("--backbone", default="deit_s", help="name of the recipe to build (default: %(default)s)")
    options = parser.parse_args()
    gpu = find_gpu()
    if gpu is None:
        print(f"gpu_check needs a GPU, and {why_no_gpu()}.", file=sys.stderr)
        sys.exit(2)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [row.as_json() for row in check_all(options.backbone, options.out, gpu)]
    machine = examine_machine()
    results = {"machine": machine.model_dump(mode="json"), "rows": rows}
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    title = f"DEC {options.backbone} on {machine.machine.gpu}, driver {machine.machine.nvidia_driver}"
    cells = ([row.get(column, "") for column in COLUMNS] for row in rows)
    Console(width=200).print(table(f"{title}, Python {platform.python_version()}", COLUMNS, cells))
    sys.exit(1 if any(row["gate"] not in ("pass", "cannot run") for row in rows) else 0)


if __name__ == "__main__":
    main()
