"""The wheel holds every file that an installed dec-export needs, and no files of its development."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dec_export.recipe.shipped import shipped_recipes

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_recipes_and_plugins(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "demo", "build", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"dec_export_models/{name}.yaml" for name in shipped_recipes()} <= names
    assert {f"dec_export_models/{name}.safetensors" for name in ("digits", "digits_segmentation")} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "dec_export").rglob("*.py")}
    sources |= {str(path.relative_to(ROOT)) for path in (ROOT / "dec_export").rglob("*.jinja")}
    assert {*sources, "dec_plugins/__init__.py", "dec_export_models/__init__.py", "dec_export/py.typed"} <= names
    folders = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert folders == {"dec_export", "dec_export_models", "dec_plugins"}
