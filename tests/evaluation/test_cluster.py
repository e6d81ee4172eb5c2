"""A cluster computes the numbers of one process, also when a worker is killed. Ray runs on this machine alone."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyarrow import parquet
from ray import cloudpickle

from dec_export.bundle.store import Bundle
from dec_export.engines.base import RunOptions
from dec_export.errors import DataError, EngineError, ImageError
from dec_export.evaluation import cluster
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.environment import Environment, environment_of
from dec_export.evaluation.journal import Journal
from dec_export.evaluation.plan import make_plan
from dec_export.evaluation.predictions import PredictionOptions, predict
from dec_export.evaluation.run import evaluate
from dec_export.evaluation.worker import Stage, Worker
from tests.evaluation.trees import class_tree, options


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_tree(tmp_path_factory.mktemp("data"), 48)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Let the machine seem to have two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.os, "sched_getaffinity", lambda _: {0, 1})
        yield


@pytest.fixture
def running(two_workers: None) -> Iterator[None]:
    """Run a cluster that this process has joined."""
    with ExitStack() as stack:
        cluster._connect(cluster.LOCAL, stack)
        yield


class Fatal(Worker):
    """A worker whose process ends, as one that takes too much memory does."""

    def stages(self, starts: Iterable[int], threads: Executor) -> Iterator[Stage]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().stages(starts, threads)


def descendants(pid: int) -> dict[int, str]:
    """The processes below a process, with their command lines."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # It has ended in between.
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: commands[child] for child in found - {pid}}


def ray_processes() -> list[str]:
    return [command for command in descendants(os.getpid()).values() if "ray" in command.split(" ")[0].lower()]


def test_a_killed_worker_loses_nothing(
    small_bundle: Bundle, data: Path, two_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(small_bundle, data, options(tmp_path / "one"))
    killed: list[int] = []
    count, add = [], Journal.add

    def add_and_kill(self: Journal, chunk: Chunk) -> None:
        add(self, chunk)
        count.append(chunk.first)
        if len(count) == 3:
            workers = [pid for pid, name in descendants(os.getpid()).items() if "MapWorker" in name]
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    monkeypatch.setattr(Journal, "add", add_and_kill)
    found = evaluate(small_bundle, data, options(tmp_path / "two", cluster="local", run=RunOptions()))
    assert killed
    assert found.model_dump_json() == expected.model_dump_json()
    assert sorted(count) == list(range(0, 48, 2))
    deadline = time.monotonic() + 20
    while ray_processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray_processes() == []


def test_what_users_do_on_a_cluster(
    small_bundle: Bundle, data: Path, running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cluster serves all these cases, because its start takes seconds."""
    fast = PredictionOptions(engine="onnxruntime", run=RunOptions(threads=1), batch=2)
    predict(small_bundle, data, tmp_path / "one.parquet", fast)
    with_ray = PredictionOptions(engine="onnxruntime", batch=2, cluster="local")
    predict(small_bundle, data, tmp_path / "two.parquet", with_ray)
    assert parquet.read_table(tmp_path / "one.parquet").equals(parquet.read_table(tmp_path / "two.parquet"))

    # A user's error in a worker is the same sentence as in one process.
    small = class_tree(tmp_path / "small", 10)
    (small / "class5" / "0005.png").write_bytes(b"no image")
    strict = options(tmp_path, cluster="local", strict=True, strengths=(), baselines=())
    with pytest.raises(ImageError, match=r"0005\.png' is not a JPEG or PNG image"):
        evaluate(small_bundle, small, strict)
    with pytest.raises(EngineError, match="holds no engine 'tensorrt'"):
        evaluate(small_bundle, small, options(tmp_path, cluster="local", engine="tensorrt"))

    # Images that end every worker are given up.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "TRIES", 1)
    fatal = cluster.RayComputer(Fatal(make_plan(small_bundle, small, options(tmp_path, cluster="local"))), 1)
    with pytest.raises(DataError, match="The worker died 1 times on the images from number 0 on"):
        list(fatal.chunks([0]))

    # Relative paths mean the same in a worker, and an image that it cannot read is one sentence.
    monkeypatch.chdir(tmp_path)
    plan = make_plan(small_bundle, Path("small"), options(tmp_path, cluster="local"))
    computer = cluster.RayComputer(Worker(plan), 1)
    assert computer.environment().engines == ("onnxruntime", "torch")
    for image in small.rglob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match=f"The worker on {socket.gethostname()} cannot read 'small/class0/0000.png'"):
        computer.environment()

    monkeypatch.setattr(cluster, "START", 0.5)
    many = make_plan(small_bundle, data, options(tmp_path, run=RunOptions(threads=64)))
    with pytest.raises(DataError, match="no room for a worker with 64 CPUs and 0 GPUs"):
        cluster.RayComputer(Worker(many), 1).environment()


def test_workers_with_other_libraries_are_refused(small_bundle: Bundle, data: Path, tmp_path: Path) -> None:
    worker = Worker(make_plan(small_bundle, data, options(tmp_path, baselines=())))
    here = environment_of(worker.models)
    actor = object.__new__(cluster._Actor)
    actor._computer = cluster.LocalComputer(worker, 1)
    actor._expected = here
    actor._check_environment()
    actor._expected = Environment(here.engines, here.details, here.versions, "x86_64 none")
    with pytest.raises(DataError, match="instead of x86_64 none, so its numbers could differ"):
        actor._check_environment()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:{free}", "There is no Ray cluster at '127.0.0.1:.*refused.*ray start --head"),
        ("127.0.0.1:99999", "There is no Ray cluster at '127.0.0.1:99999'"),
        ("ray://127.0.0.1:10001", "must be local, auto or HOST:PORT, found 'ray://127.0.0.1:10001'"),
        ("here", "must be local, auto or HOST:PORT, found 'here'"),
        ("auto", "Ray does not start or join a cluster at 'auto'"),
    ],
)
def test_an_address_without_a_cluster_is_one_sentence(
    small_bundle: Bundle, data: Path, tmp_path: Path, address: str, sentence: str
) -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match=sentence):
        evaluate(small_bundle, data, options(tmp_path, cluster=address.replace("{free}", str(free_port()))))
    assert time.monotonic() - begin < cluster.CONNECT + 20


def test_without_ray_the_sentence_says_how_to_install_it(
    small_bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "has_package", lambda name: name != "ray")
    with pytest.raises(DataError, match=r"pip install 'dec-export\[ray\]'"):
        evaluate(small_bundle, data, options(tmp_path, cluster="local"))


def test_nothing_is_reported_to_the_makers_of_ray() -> None:
    assert cluster._SETTINGS["RAY_USAGE_STATS_ENABLED"] == "0"
