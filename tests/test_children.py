"""A file in the current folder never runs, whatever its name is."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dec_export
import dec_plugins
from dec_export.bundle.store import Bundle
from dec_export.children import python_command
from tests.conftest import needs_rtx

SOURCES = [Path(dec_export.__file__).parent, Path(next(iter(dec_plugins.__path__))), Path("scripts")]
# Names that children, or what they import, ask for: of the standard library, of libraries, and of hooks.
NAMES = ("json", "os", "pathlib", "tempfile", "numpy", "onnxruntime", "torch", "tensorrt_rtx", "polygraphy", "random")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    return folder


def run_in(folder: Path, *arguments: str, module: bool = False) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "dec_export"] if module else [str(Path(sys.executable).parent / "dec-export")]
    return subprocess.run([*program, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_child_does_not_import_from_its_folder(name: str, hostile: Path) -> None:
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s and s.origin)"
    done = subprocess.run(python_command(code), cwd=hostile, capture_output=True, text=True, check=True)
    assert str(hostile) not in done.stdout


def test_without_it_a_child_would(hostile: Path) -> None:
    """A process that is started without the protection does import from the current folder."""
    subprocess.run([sys.executable, "-c", "import random"], cwd=hostile, capture_output=True, check=False)
    assert (hostile.parent / "ran").read_text() == "random"


@pytest.mark.slow
@pytest.mark.parametrize("module", [False, True], ids=["dec-export", "python -m dec_export"])
def test_measuring_memory_runs_no_file_of_the_folder(module: bool, hostile: Path, small_bundle: Bundle) -> None:
    done = run_in(
        hostile,
        "bench",
        str(small_bundle.path),
        "--batch",
        "1",
        "--rounds",
        "1",
        "--baseline",
        "none",
        "--json",
        module=module,
    )
    assert not (hostile.parent / "ran").exists()
    assert done.returncode == 0, done.stderr


@needs_rtx
@pytest.mark.slow
def test_building_an_engine_runs_no_file_of_the_folder(hostile: Path, small_recipe_file: Path) -> None:
    out = hostile.parent / "built"
    options = ("--samples", "1", "--engine", "tensorrt-rtx", "--json")
    done = run_in(hostile, "build", "--recipe", str(small_recipe_file), "--out", str(out), *options)
    assert not (hostile.parent / "ran").exists()
    assert done.returncode == 0, done.stderr


def test_a_bundle_with_a_file_that_nobody_vouches_for_is_refused(small_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_bundle.path, copy)
    for command in ("bench", "inspect", "parity"):
        (copy / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        done = run_in(copy, command, ".")
        assert done.returncode == 2
        assert "'json.py' is not listed in the bundle's manifest.json" in done.stderr.replace("\n", " ")
        assert not (tmp_path / "ran").exists()


def test_every_python_process_is_started_without_the_current_folder() -> None:
    """Only one place of the source uses `sys.executable`."""
    for folder in SOURCES:
        for file in sorted(folder.rglob("*.py")):
            if file.name == "children.py":
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                assert not (isinstance(node, ast.Attribute) and node.attr == "executable"), file
                assert not (isinstance(node, ast.Attribute) and node.attr in ("system", "fork", "spawn")), file
