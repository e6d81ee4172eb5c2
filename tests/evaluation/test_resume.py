"""An evaluation that was interrupted in any way goes on, and has the numbers of one that was not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dec_export.bundle.store import Bundle
from dec_export.children import python_command
from dec_export.cli import main
from dec_export.errors import DataError, DecExportError
from dec_export.evaluation import journal as journals
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.environment import Environment, environment_of
from dec_export.evaluation.journal import Journal
from dec_export.evaluation.plan import make_plan
from dec_export.evaluation.results import Results
from dec_export.evaluation.run import evaluate
from tests.evaluation.trees import class_tree, options

PRINT = "0123456789abcdef"
# Each child is a process of its own that evaluates; forking saves the import of PyTorch.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import onnxruntime, timm, torch
from dec_export.evaluation.run import evaluate
from tests.evaluation.trees import options

bundle, data, place = sys.argv[1:]
place = Path(place)

def child(journal, out, resume):
    pid = os.fork()
    if pid == 0:
        try:
            results = evaluate(bundle, data, options(journal, resume=resume))
            out.write_text(results.model_dump_json())
        finally:
            os._exit(0)
    return pid

def finished():
    return len(list(place.glob("journal/*/chunk-*.npz")))

os.waitpid(child(place / "other", place / "whole.json", False), 0)
random.seed(5)
found = []
for _ in range(4):
    pid = child(place / "journal", place / "early.json", True)
    wanted = finished() + random.randint(1, 3)
    while finished() < wanted and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found.append(finished())
os.waitpid(child(place / "journal", place / "resumed.json", True), 0)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_tree(tmp_path_factory.mktemp("data"), 10)


@pytest.fixture(scope="module")
def whole(small_bundle: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return evaluate(small_bundle, data, options(tmp_path_factory.mktemp("journal")))


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Interrupt an evaluation after some chunks, and list the chunks that are computed."""
    added: list[int] = []
    add = Journal.add

    def after(count: int) -> list[int]:
        def limited(self: Journal, chunk: Chunk) -> None:
            if len(added) == count:
                raise KeyboardInterrupt
            added.append(chunk.first)
            add(self, chunk)

        monkeypatch.setattr(Journal, "add", limited)
        return added

    return after


def test_a_killed_evaluation_resumes_to_the_same_numbers(small_bundle: Bundle, tmp_path: Path) -> None:
    data = class_tree(tmp_path / "data", 40)
    command = [*python_command(KILLS), str(small_bundle.path), str(data), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    after_kills = json.loads(run.stdout.splitlines()[-1])
    assert after_kills == sorted(after_kills)
    assert 0 < after_kills[0] < after_kills[-1] < 20
    assert (tmp_path / "resumed.json").read_text() == (tmp_path / "whole.json").read_text()
    assert not list(tmp_path.glob("journal/*/"))


def test_a_damaged_chunk_is_computed_again(
    small_bundle: Bundle, data: Path, whole: Results, tmp_path: Path, interrupt: Callable[[int], list[int]]
) -> None:
    added = interrupt(3)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        evaluate(small_bundle, data, options(tmp_path))
    first, second, _ = sorted(tmp_path.glob("*/chunk-*.npz"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.write_bytes(b"")
    added.clear()
    interrupt(99)
    assert evaluate(small_bundle, data, options(tmp_path, resume=True)) == whole
    assert added == [0, 2, 6, 8]


def test_without_resume_the_earlier_chunks_do_not_count(
    small_bundle: Bundle, data: Path, whole: Results, tmp_path: Path, interrupt: Callable[[int], list[int]]
) -> None:
    added = interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_bundle, data, options(tmp_path))
    added.clear()
    interrupt(99)
    assert evaluate(small_bundle, data, options(tmp_path)) == whole
    assert added == [0, 2, 4, 6, 8]
    assert not list(tmp_path.glob("*/"))


def test_an_interrupt_says_how_to_go_on(
    small_bundle: Bundle,
    data: Path,
    tmp_path: Path,
    interrupt: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(journals, "user_cache", lambda name: tmp_path / name)
    interrupt(1)
    arguments = ["evaluate", str(small_bundle.path), "--data", str(data), "--engine", "onnxruntime", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main.main([*arguments, "--batch", "2", "--baseline", "torch"])
    assert ended.value.code == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "The command was interrupted; what is finished is kept, and the same command with --resume goes on."
    )


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    with (
        Journal.open(PRINT, tmp_path, resume=False),
        pytest.raises(DataError, match="Another process evaluates"),
        Journal.open(PRINT, tmp_path, resume=True),
    ):
        pass
    with Journal.open(PRINT, tmp_path, resume=True) as journal:
        journal.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["all.lock"]


@pytest.fixture
def abandoned(tmp_path: Path) -> Iterator[list[Path]]:
    """Journals of one to twenty hours ago, and one of forty days ago."""
    hours = [*range(1, 21), 40 * 24]
    folders = [tmp_path / f"{hour:016x}" for hour in hours]
    for hour, folder in zip(hours, folders, strict=True):
        folder.mkdir()
        then = time.time() - 3600 * hour
        os.utime(folder, (then, then))
    return folders


def test_old_journals_and_those_beyond_a_number_are_removed(abandoned: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "notes"
    other.mkdir()
    with Journal.open(PRINT, tmp_path, resume=False) as journal:
        left = {path for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {journal.folder, other, *abandoned[: journals.MAX_JOURNALS - 1]}


def test_a_journal_in_use_is_not_removed_for_its_age(abandoned: list[Path], tmp_path: Path) -> None:
    with Journal.open(abandoned[-1].name, tmp_path, resume=True) as old:
        os.utime(old.folder, (0, 0))
        with Journal.open(PRINT, tmp_path, resume=False):
            assert old.folder.is_dir()


def test_a_full_disk_is_one_sentence(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be kept in .* make room .* --resume\.$"):
            evaluate(small_bundle, data, options(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"Not a directory.*XDG_CACHE_HOME"),
        Journal.open(PRINT, tmp_path / "file" / "evaluations", resume=False),
    ):
        pass


@pytest.fixture(scope="module")
def environment() -> Environment:
    return environment_of(())


def test_the_fingerprint_covers_what_the_numbers_depend_on(
    small_bundle: Bundle, environment: Environment, tmp_path: Path
) -> None:
    data = class_tree(tmp_path / "data", 10)

    def fingerprint(**others: object) -> str:
        return make_plan(small_bundle, data, options(tmp_path, **others)).fingerprint(environment)

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(workers=7, resume=True) == first
    changed = [fingerprint(batch=3), fingerprint(strengths=()), fingerprint(baselines=()), fingerprint(limit=5)]
    changed += [fingerprint(seed=1), fingerprint(strict=True), fingerprint(engine="torch")]
    image = next(data.rglob("*.png"))
    os.utime(image, (1, 1))
    changed.append(fingerprint())
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, (1, 1))
    changed.append(fingerprint())
    image.unlink()
    changed.append(fingerprint())
    assert len({first, *changed}) == 1 + len(changed)


def test_the_fingerprint_covers_versions_and_processor(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    plan = make_plan(small_bundle, data, options(tmp_path))
    ours = Environment(("a",), ('{"device": "cpu"}',), '{"torch": "2"}', "x86_64 AVX2")
    others = [
        Environment(("a",), ('{"device": "cuda"}',), '{"torch": "2"}', "x86_64 AVX2"),
        Environment(("a",), ('{"device": "cpu"}',), '{"torch": "3"}', "x86_64 AVX2"),
        Environment(("a",), ('{"device": "cpu"}',), '{"torch": "2"}', "x86_64 AVX512"),
    ]
    assert len({plan.fingerprint(found) for found in (ours, *others)}) == 4
    assert ours.difference(ours) is None
    assert [ours.difference(other) for other in others] == [
        '{"device": "cpu"} instead of {"device": "cuda"}',
        "torch 2 instead of 3",
        "x86_64 AVX2 instead of x86_64 AVX512",
    ]


def test_a_broken_image_is_counted_and_named_or_fatal(small_bundle: Bundle, tmp_path: Path) -> None:
    data = class_tree(tmp_path / "data", 10)
    broken = data / "class4" / "0004.png"
    broken.write_bytes(broken.read_bytes()[:200])
    # A chunk of which no image is left.
    (data / "class8" / "0008.png").write_bytes(b"no image")
    (data / "class9" / "0009.png").write_bytes(b"")
    found = evaluate(small_bundle, data, options(tmp_path))
    assert found.images == 7
    assert list(found.skipped) == ["class4/0004.png", "class8/0008.png", "class9/0009.png"]
    assert str(broken) in found.skipped["class4/0004.png"]
    with pytest.raises(DecExportError, match=r"0004\.png' cannot be decoded"):
        evaluate(small_bundle, data, options(tmp_path, strict=True))
