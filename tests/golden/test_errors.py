"""Every mistake of a user gives its error message and exit code 2, and leaves no files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.command import dec_export
from tests.golden.mistakes import MISTAKES, prepare
from tests.golden.normalise import without_folder
from tests.golden.store import DATA, Golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    prepare(made)
    return made


def _all_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake: str, folder: Path, golden: Golden) -> None:
    before = _all_files(folder)
    arguments = [argument.replace("{tmp}", str(folder)) for argument in MISTAKES[mistake]]
    outcome = dec_export(*arguments, "--json")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert outcome.facts == {"error": line.removeprefix("Error: "), "exit_code": outcome.code}
    assert "defect of dec-export" not in line
    assert _all_files(folder) == before
    golden.check_entry("errors.json", mistake, {"exit_code": outcome.code, "sentence": without_folder(line, folder)})


def test_every_recorded_error_has_its_mistake() -> None:
    recorded = json.loads((DATA / "errors.json").read_text(encoding="utf-8"))
    assert set(recorded) == set(MISTAKES)
