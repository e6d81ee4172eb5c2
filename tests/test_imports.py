"""Imports are fast and need no runtime, help always works, and the public names are those of the list."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dec_export

ROOT = Path(dec_export.__file__).parent
# Files that a server runs, where dec_export is not installed.
SERVED = sorted((ROOT / "serving" / "triton" / "python_models").glob("*_model.py"))
LINT = "import sys\nfrom importlinter.cli import lint_imports\nsys.exit(lint_imports(no_cache=True, no_logo=True))"
RECIPE = ["recipe", "import"]
MODULES = sorted(
    ".".join(("dec_export", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py" and path not in SERVED
)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_surface() -> None:
    options = {
        "BuildOptions",
        "EngineOptions",
        "EvaluationOptions",
        "Forms",
        "PredictionOptions",
        "ProofOptions",
        "RunOptions",
        "WeightOptions",
    }
    verbs = {"build", "evaluate", "predict", "prove"}
    assert set(dec_export.__all__) == {"Bundle", "DecExportError", "Recipe", "__version__", *verbs, *options}
    for name in dec_export.__all__:
        assert getattr(dec_export, name)
    assert {"build", "prove", "engines"} <= set(dir(dec_export))
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        _ = dec_export.bild


def test_every_module_imports_without_tensorrt_or_the_triton_client() -> None:
    blocked = "import sys\nfor name in ('tensorrt', 'tensorrt_rtx', 'tritonclient'): sys.modules[name] = None\n"
    plugins = [f"dec_plugins.{name}" for name in ("plans", "compiler", "registration", "chain", "cuda", "cost")]
    python(blocked + "\n".join(f"import {module}" for module in [*MODULES, "dec_plugins", *plugins]))


def test_the_package_and_its_command_line_load_nothing_heavy() -> None:
    loaded = python("import sys, dec_export.cli, dec_plugins; print(*sys.modules)").split()
    assert not {"torch", "timm", "onnx", "onnxruntime", "numpy", "matplotlib"} & set(loaded)


def test_a_command_is_imported_when_it_is_asked_for() -> None:
    loaded = python("import sys, dec_export.cli; print(*sys.modules)").split()
    assert [name for name in loaded if name.startswith("dec_export.cli.")] == ["dec_export.cli.app"]


def test_a_manifest_is_data_alone() -> None:
    loaded = python("import sys, dec_export.bundle.manifest; print(*sys.modules)").split()
    assert not {"torch", "timm", "onnx", "onnxruntime", "dec_export.engines"} & set(loaded)


@pytest.mark.parametrize("file", SERVED, ids=lambda path: path.stem)
def test_what_a_server_runs_needs_nothing_of_this_package(file: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    allowed = {"numpy", "PIL", "onnxruntime", "cuda", "triton_python_backend_utils"}
    assert imported - set(sys.stdlib_module_names) <= allowed


COMMANDS = ("build", "parity", "inspect", "bench", "evaluate", "backbones", "doctor", "triton")
NESTED = (RECIPE, ["triton", "repository"], ["triton", "check"])


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *NESTED], ids=" ".join)
def test_help_needs_no_library_but_click(command: list[str]) -> None:
    blocked = "import sys\nfor n in ('torch', 'timm', 'onnx', 'onnxruntime', 'numpy', 'rich'): sys.modules[n] = None\n"
    text = python(blocked + f"from dec_export.cli import main\nmain({[*command, '--help']!r})")
    assert text.startswith("Usage:")


def test_every_import_contract_is_kept() -> None:
    """The contracts in pyproject.toml hold: data flows one way through the packages."""
    done = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("onnx_export.tracing", "pipeline.build"), ("formats", "recipe.model"), ("recipe.model", "reference.warp")],
)
def test_an_import_against_the_order_breaks_the_contract(importer: str, imported: str, tmp_path: Path) -> None:
    """A copy of the package with one wrong import, even for type checking only, breaks the contract."""
    shutil.copytree(ROOT, tmp_path / "dec_export", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT.parent / "plugins", tmp_path / "dec_plugins", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT.parent / "pyproject.toml", tmp_path)
    file = tmp_path / "dec_export" / f"{importer.replace('.', '/')}.py"
    line = f"\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dec_export.{imported}\n"
    file.write_text(file.read_text() + line)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LINT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"dec_export.{importer} -> dec_export.{imported}" in done.stdout


def test_timm_is_known_to_the_reference_alone() -> None:
    for file in ROOT.rglob("*.py"):
        if "reference" not in file.parts:
            assert "import timm" not in file.read_text(), file
            assert "from timm" not in file.read_text(), file
