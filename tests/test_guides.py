"""The guides of `docs/extending` are followed to the letter, in a copy of the package, and their own tests run there.

A block of a guide belongs to the file that is named before it: a block of Python or YAML is a new file, a block of a
diff changes one that is there. All guides are followed in one copy, so they also get along with each other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dec_export.bundle.store import Bundle

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "extending").glob("a*-*.md"))
# The guides' tests take the bundle that the tests of this session share.
CONFTEST = """
import os
from pathlib import Path

import pytest
import torch

from dec_export.bundle.store import Bundle

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_bundle() -> Bundle:
    return Bundle.load(Path(os.environ["SMALL_BUNDLE"]))
"""
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w./-]+\.\w+)`")


@dataclass(frozen=True)
class Block:
    """A block of a guide, and the file that it belongs to."""

    language: str
    file: str
    text: str

    @property
    def is_test(self) -> bool:
        return self.file.startswith("tests/")


def blocks_of(guide: Path) -> list[Block]:
    text = guide.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        paragraph = text[: fence.start()].rstrip().rpartition("\n\n")[2]
        named = _FILE.findall(paragraph)
        assert len(named) == 1, f"{guide.name}: one file must be named before the block {fence[2][:60]!r}"
        found.append(Block(fence[1], named[0], fence[2]))
    return found


def follow(block: Block, root: Path) -> None:
    """Do what a block says."""
    file = root / block.file
    if block.language == "diff":
        text = file.read_text(encoding="utf-8")
        for hunk in re.split(r"^@@\n", block.text, flags=re.MULTILINE):
            text = changed(text, hunk.splitlines())
        file.write_text(text, encoding="utf-8")
    else:
        assert block.language in ("python", "yaml")
        assert not file.exists(), f"{block.file} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")


def changed(text: str, hunk: list[str]) -> str:
    """The text after a hunk of a diff, whose old lines must be found once."""
    old = "".join(f"{line[1:]}\n" for line in hunk if line[:1] != "+")
    new = "".join(f"{line[1:]}\n" for line in hunk if line[:1] != "-")
    assert text.count(old) == 1, f"the diff does not fit: {old}"
    return text.replace(old, new)


@dataclass(frozen=True)
class Followed:
    """The copy in which all guides were followed; the tests that passed there, by their files; what pytest said."""

    root: Path
    passed: dict[str, list[str]]
    output: str


@pytest.fixture(scope="module")
def followed(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    root = tmp_path_factory.mktemp("guides")
    shutil.copytree(ROOT / "dec_export", root / "dec_export", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "tests").mkdir()
    (root / "tests" / "conftest.py").write_text(CONFTEST)
    for guide in GUIDES:
        for block in blocks_of(guide):
            follow(block, root)
    results = root / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", "tests"]
    # The copy stands before the installed package.
    environment = {**os.environ, "PYTHONPATH": str(root), "SMALL_BUNDLE": str(small_bundle.path)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    passed: dict[str, list[str]] = {}
    for case in ElementTree.parse(results).iter("testcase"):  # noqa: S314 the file was written a moment ago
        if not list(case):
            passed.setdefault(case.attrib["classname"].replace(".", "/") + ".py", []).append(case.attrib["name"])
    return Followed(root, passed, done.stdout + done.stderr)


def test_the_index_lists_every_guide() -> None:
    index = (ROOT / "docs" / "extending" / "README.md").read_text()
    assert len(GUIDES) == 4
    assert all(f"]({guide.name})" in index for guide in GUIDES)


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_whoever_follows_a_guide_passes_its_test(guide: Path, followed: Followed) -> None:
    (test,) = (block for block in blocks_of(guide) if block.is_test)
    written = re.findall(r"^def (test_\w+)", test.text, re.MULTILINE)
    assert sorted(followed.passed.get(test.file, [])) == sorted(written), followed.output[-5000:]


@pytest.mark.slow
def test_the_code_of_the_guides_has_the_style_of_the_house(followed: Followed) -> None:
    files = [block.file for guide in GUIDES for block in blocks_of(guide) if block.file.endswith(".py")]
    for arguments in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        command = [sys.executable, "-m", "ruff", *arguments, *sorted(set(files))]
        done = subprocess.run(command, cwd=followed.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("hunk", [[" absent", "+new"], [" twice", "+new"]])
def test_a_diff_that_does_not_fit_is_noticed(hunk: list[str]) -> None:
    with pytest.raises(AssertionError, match="the diff does not fit"):
        changed("twice\nonce\ntwice\n", hunk)
    assert changed("twice\nonce\n", [" once", "+new"]) == "twice\nonce\nnew\n"
