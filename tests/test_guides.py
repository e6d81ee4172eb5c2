"""What documents show is true: the guides of `docs/extending`, the example of the README, and links.

The guides are followed to the letter, in a copy of the package, and their own tests run there.

A block of a guide belongs to the file that is named before it: a block of Python or YAML is a new file, a block of a
diff changes one that is there. All guides are followed in one copy, so they also get along with each other.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import dec_export
from dec_export.bundle.store import Bundle
from dec_export.data.images import packaged_photographs

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dec_export"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
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
_FOLDER = re.compile(r"`([\w/]+/)`")
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
    assert results.exists(), done.stdout + done.stderr
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


@pytest.mark.slow
def test_the_example_of_the_readme_runs(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bundle that is there, because its checkpoint is not: the arguments of the build are checked."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    signature = inspect.signature(dec_export.build)
    asked = []

    def build(*args: object, **kwargs: object) -> Bundle:
        asked.append(signature.bind(*args, **kwargs))
        return small_bundle

    monkeypatch.setattr(dec_export, "build", build, raising=False)
    names = {"paths": packaged_photographs()[:2]}
    exec(code, names)  # noqa: S102 it is our own
    assert len(asked) == 1
    assert np.shape(names["logits"]) == (2, small_bundle.recipe.backbone.num_classes)


@pytest.mark.parametrize("kind", ["WeightOptions", "Forms", "EngineOptions", "ProofOptions", "EvaluationOptions"])
def test_the_readme_names_options_that_exist(kind: str) -> None:
    fields = [field.name for field in dataclasses.fields(getattr(dec_export, kind))]
    mentioned = re.findall(rf"{kind}\(([a-z_,\s]+)\)", README)
    assert mentioned
    for names in mentioned:
        assert set(re.split(r",\s+", names)) <= set(fields)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for address in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = address.partition("#")
        if "://" in path:
            continue
        target = document.parent / path if path else document
        assert target.exists(), address
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, address


@pytest.mark.parametrize(("document", "folder"), [("extending/README.md", ROOT), ("architecture.md", PACKAGE)])
def test_registries_are_where_the_documents_say(document: str, folder: Path) -> None:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    places = dict(re.findall(r"`(\w+)`,? in `([\w./]+\.py)`", text))
    assert {"_MODULES", "MEASURES", "TASKS", "LAYOUTS", "FAMILIES", "_FACTS", "PlanName"} <= set(places)
    for name, file in places.items():
        code = (folder / file).read_text(encoding="utf-8")
        assert re.search(rf"^(class )?{name}\b", code, re.MULTILINE), f"{name} is not in {file}"


def test_the_folders_of_the_house_are_those_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("| folder |")[2].partition("\n\n")[0]
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))
    named = {folder.rstrip("/") for folder in _FOLDER.findall(first_cells)}
    there = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {folder.partition("/")[0] for folder in named} == there
    assert all((PACKAGE / folder).is_dir() for folder in named)


@pytest.mark.parametrize("hunk", [[" absent", "+new"], [" twice", "+new"]])
def test_a_diff_that_does_not_fit_is_noticed(hunk: list[str]) -> None:
    with pytest.raises(AssertionError, match="the diff does not fit"):
        changed("twice\nonce\ntwice\n", hunk)
    assert changed("twice\nonce\n", [" once", "+new"]) == "twice\nonce\nnew\n"
