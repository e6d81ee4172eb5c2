"""docs/evaluate.md shows commands that exist, and a session that runs as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from dec_export.bundle.store import Bundle
from dec_export.cli.app import main
from dec_export.evaluation.layouts.registry import layout_names
from dec_export.tasks import TASKS
from tests.helpers.commands import dec_export

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("evaluate*.md"))]
COMMANDS = [
    line.strip().removeprefix("$ ").partition("  #")[0].rstrip()
    for page in PAGES
    for line in page.read_text(encoding="utf-8").splitlines()
    if re.match(r"\s*(\$ |    )dec-export (evaluate|predict) ", line)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_documents_is_understood(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.make_context(name, words).params["bundle"]


def test_the_documents_show_commands() -> None:
    assert len(COMMANDS) >= 4


def test_the_layouts_and_metrics_of_the_document_are_those_that_are_there() -> None:
    layouts = re.findall(r"^\| `([a-z-]+)` \|", DOCUMENT.partition("| layout |")[2].partition("\n\n")[0], re.MULTILINE)
    assert sorted(layouts) == sorted(layout_names())
    cells = re.findall(r"^\| (`.*?`) \|", DOCUMENT.partition("| metric |")[2].partition("\n\n")[0], re.MULTILINE)
    named = {name.strip("`") for cell in cells for name in cell.split(", ")}
    known = {metric.name for task in TASKS.values() for metric in task.metrics()}
    assert named == known | {task.metric.lower() for task in TASKS.values()}


def test_the_session_runs(digits_bundle: Bundle, tmp_path: Path) -> None:
    """It runs on 64 images instead of 1,000, which is too few for its limit of half a point."""
    written = next(code for code in re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))
    assert ", 1000, " in written
    with pytest.MonkeyPatch.context() as context:
        context.chdir(tmp_path)
        exec(written.replace(", 1000, ", ", 64, "), {})  # noqa: S102 it is our own
    assert len(list((tmp_path / "validation").rglob("*.png"))) == 64
    (line,) = (line for line in COMMANDS if "--html page.html" in line and "inve" in line)
    words = shlex.split(line)[2:]
    words[words.index("digits")] = str(digits_bundle.path)
    words[words.index("validation")] = str(tmp_path / "validation")
    words[words.index("page.html")] = str(tmp_path / "page.html")
    outcome = dec_export("evaluate", *words)
    assert outcome.returncode == 3, outcome.stderr
    assert "CANNOT TELL: top-1 accuracy, clean: the drop from torch to onnxruntime is" in outcome.stdout
    assert "PASSED: InvE, local scaling 0.25: the drop from torch" in outcome.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 1
    assert "The image " in page
