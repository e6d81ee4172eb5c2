"""The limits on the source that docs/architecture.md explains."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(file for folder in ("dec_export", "plugins", "scripts") for file in (ROOT / folder).rglob("*.py"))
# A kernel's arguments are its tensors, sizes and constants, and it is compiled as one function.
KERNELS = ROOT / "plugins" / "kernels.py"
MOST_PARAMETERS, MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_MODULE = 7, 60, 400

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(file: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, Function):
            yield node


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [file for file in SOURCES if file != KERNELS], ids=name_of)
def test_modules_and_functions_are_short_and_take_few_parameters(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MOST_LINES_OF_A_MODULE
    for function in functions(file):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= MOST_LINES_OF_A_FUNCTION, f"{function.name} has {length} lines"
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        taken = [name for name in names if name not in ("self", "cls")]
        # Commands of the command line take what click hands them: one parameter for each option.
        if not function.name.startswith("_") and "cli" not in file.parts:
            assert len(taken) <= MOST_PARAMETERS, f"{function.name} takes {len(taken)} parameters"


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_no_place_looks_at_a_task_or_at_the_beginning_of_a_name(file: Path) -> None:
    """Tasks and tensor names are objects with methods, so that a new one changes one file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name | ast.Attribute):
            left = node.left.id if isinstance(node.left, ast.Name) else node.left.attr
            against = [c.value for c in node.comparators if isinstance(c, ast.Constant)]
            assert not (left == "task" and any(isinstance(value, str) for value in against)), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
            beginnings = ("phi_", "solve_", "feature_map_", "features_")
            assert not any(text.startswith(beginnings) for text in texts), f"line {node.lineno}"
