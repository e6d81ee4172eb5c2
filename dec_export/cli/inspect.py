"""`dec-export inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dec_export.cli.app import Outcome, answers
from dec_export.cli.options import BUNDLE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dec_export.bundle.manifest import TensorEntry
    from dec_export.engines.tensorrt.layers import Binding
    from dec_export.inspection import Inspection


@click.command("inspect")
@BUNDLE
@answers
def command(bundle: Path) -> Outcome[Inspection]:
    """Show the content of a bundle: its manifest, its ONNX graph and its engines."""
    from dec_export.bundle.store import Bundle
    from dec_export.inspection import Inspection, inspect_bundle

    return Outcome(inspect_bundle(Bundle.load(bundle)), Inspection.dump, _render)


def _render(found: Inspection) -> RenderableType:
    from rich.console import Group

    from dec_export.report.tables import table

    operators = table("Operators", ("operator", "count"), found.operators.items(), numbers=("count",))
    tensors = table(
        "Largest tensors (of one sample)",
        ("tensor", "kind", "dtype", "shape", "MB"),
        ((t.name, t.kind, t.dtype, _joined(t.shape), _megabytes(t.bytes)) for t in found.largest_tensors),
        numbers=("MB",),
    )
    sizes = ((name, entry.size) for name, entry in found.manifest.files.items())
    files = table("Files", ("file", "bytes"), sizes, numbers=("bytes",))
    return Group(_summary(found), operators, tensors, *_engines(found), files)


def _summary(found: Inspection) -> RenderableType:
    from dec_export.report.tables import key_values

    manifest, initializers = found.manifest, found.initializers
    if manifest.recipe.canonicalizer is None:
        solver = "none, a backbone alone"
    elif manifest.recipe.discrete is not None:
        solver = "none, a choice between fixed warps"
    else:
        solver = f"{manifest.solver}, convolutions in {manifest.solver_precision}"
    return key_values(
        "Bundle",
        {
            "recipe": f"{manifest.recipe.name} ({manifest.recipe.backbone.timm})",
            "weights": manifest.weights.detail,
            "solver": solver,
            "precision of the backbone": manifest.precision,
            "opset": manifest.opset,
            "gate": manifest.gate,
            "inputs": _tensors(manifest.inputs),
            "outputs": _tensors(manifest.outputs),
            "nodes": found.nodes,
            **({"dec operators": _dec_operators(found.dec_operators)} if found.dec_operators else {}),
            "initializers": f"{initializers.count}, {initializers.bytes / 1e6:.1f} MB",
        },
    )


def _engines(found: Inspection) -> Iterator[RenderableType]:
    """Yield two tables for each TensorRT engine: what it was built for, and its largest tensors."""
    from dec_export.report.tables import plan, table

    for name, entry in found.manifest.plans.items():
        held = found.engine_layers[name]
        yield plan(name, entry, {"inputs and outputs": _tensors(held.bindings)})
        yield table(
            f"Largest tensors in {name} (of one sample)",
            ("layer", "kind", "dtype", "shape", "MB"),
            ((t.layer, t.kind, t.dtype, _joined(t.shape), _megabytes(t.bytes)) for t in held.largest_tensors),
            numbers=("MB",),
        )


def _dec_operators(counts: dict[str, int]) -> str:
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{sum(counts.values())} in the solves: {listed}"


def _tensors(tensors: Iterable[TensorEntry] | Iterable[Binding]) -> str:
    return ", ".join(f"{t.name} {t.dtype} ({_joined(t.shape)})" for t in tensors)


def _joined(shape: Iterable[int | str]) -> str:
    return ", ".join(map(str, shape))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"
