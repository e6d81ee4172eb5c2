"""The computation of chunks on a Ray cluster: Ray Data spreads them over workers, which load the models once.

Every chunk is computed as in a single process, so the numbers are the same. When a worker dies, Ray starts another one
and computes the chunks that were lost again.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any  # Ray has no types

import numpy as np
from numpy.typing import NDArray

from dec_export import errors
from dec_export.engines.registry import engine_spec
from dec_export.errors import DataError, DecExportError
from dec_export.evaluation.chunks import Chunk
from dec_export.evaluation.computer import LocalComputer
from dec_export.evaluation.environment import Environment
from dec_export.evaluation.models import ModelSource
from dec_export.evaluation.samples import FileSource
from dec_export.evaluation.worker import Worker
from dec_export.libraries import has_package

if TYPE_CHECKING:
    from dec_export.evaluation.computer import Computer

LOCAL, RUNNING = "local", "auto"
# Seconds in which a cluster must answer, and in which it must have room for one worker.
CONNECT, START = 10.0, 600.0
# A worker gets this many chunks at once at most, and these are computed again when it dies.
_MOST_AT_ONCE = 8
# The results of chunks are small, so little memory is reserved for them; Ray's own minimum is 75 MiB.
_OBJECT_BYTES = 256 << 20
# Ray would report the use of this program to its makers, and write its own log on the terminal.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "ERROR"}
# Chunks are tried this often when their workers die.
TRIES = 4
# A batch of rows of Ray Data: columns by their names.
_Rows = Mapping[str, NDArray[Any]]


@contextmanager
def join(worker: Worker, threads: int, address: str) -> Iterator[Computer]:
    """Join a cluster, or start one on this machine that ends with the block.

    threads: the threads that decode images, in each worker. Raises DataError when Ray is not installed, or when there
    is no cluster at the address.
    """
    if not has_package("ray"):
        raise DataError("--ray needs the package ray, which is not installed: pip install 'dec-export[ray]'.")
    import ray

    with ExitStack() as stack:
        if not ray.is_initialized():
            _connect(address, stack)
        _be_quiet()
        yield RayComputer(worker, threads)


class RayComputer:
    """Computes chunks on the cluster that this process has joined.

    threads: the threads that decode images, in each worker. most: the largest number of workers; None means as many as
    the cluster has room for.
    """

    def __init__(self, worker: Worker, threads: int, most: int | None = None) -> None:
        import ray

        self._threads, self._most = threads, most
        self._rooms = _resources()
        cores = worker.plan.models[0].run.threads or 1
        on_gpu = _may_use_gpu(worker.plan.models) and self._rooms.get("GPU", 0) >= 1
        self._needs = {"num_cpus": cores, "num_gpus": int(on_gpu)}
        self._shared = ray.put((worker, os.getcwd()))
        self._environment: Environment | None = None

    def environment(self) -> Environment:
        """Return the environment of a worker, which has read the bundle and the first image."""
        import ray

        needs: dict[str, Any] = self._needs  # Ray's other options have other types
        probe = ray.remote(max_retries=3, **needs)(_probe).remote(self._shared)
        try:
            found: Environment | str = ray.get(probe, timeout=START)
        except ray.exceptions.GetTimeoutError as error:
            raise DataError(
                f"The cluster has no room for a worker with {self._needs['num_cpus']} CPUs and "
                f"{self._needs['num_gpus']} GPUs: wait for it, or give --threads a smaller number."
            ) from error
        except ray.exceptions.RayError as error:
            raise _as_sentence(error) from error
        self._environment = _raise_if_error(found)
        return self._environment

    def chunks(self, starts: Sequence[int], *, ordered: bool = False) -> Generator[Chunk, None, None]:
        import ray

        if not starts:
            return
        workers = self._count_workers()
        at_once = max(1, min(_MOST_AT_ONCE, len(starts) // (4 * workers)))
        groups = [list(starts[i : i + at_once]) for i in range(0, len(starts), at_once)]
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = ordered
        needs: dict[str, Any] = self._needs  # Ray's other options have other types
        work = ray.data.from_items([{"starts": group} for group in groups], override_num_blocks=len(groups))
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
        computed = work.map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(groups))),
            fn_constructor_args=(self._shared, self._threads, self._environment, attempts, TRIES),
            **needs,
        )
        try:
            for row in computed.iter_rows():
                yield Chunk.from_bytes(_raise_if_error(row["content"] or row["error"]))
        except ray.exceptions.RayError as error:
            raise _as_sentence(error) from error

    def _count_workers(self) -> int:
        """Return how many workers the cluster has room for."""
        rooms = [self._rooms.get("CPU", 1) // self._needs["num_cpus"]]
        if self._needs["num_gpus"]:
            rooms.append(self._rooms["GPU"])
        return max(1, int(min(rooms if self._most is None else [*rooms, self._most])))


class _Attempts:
    """Counts how often chunks were begun. Ray would try chunks that end their worker every time forever."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def count(self, start: int) -> int:
        """Return how often the chunk that begins at image `start` was begun, with this time."""
        self._counts[start] += 1
        return self._counts[start]


class _Actor:
    """A worker process of the cluster. It loads the models once; a user's error becomes a row instead of a retry."""

    def __init__(self, shared: Any, threads: int, expected: Environment | None, attempts: Any, tries: int) -> None:
        # `shared` and `attempts` are Ray's references to a worker with its folder, and to `_Attempts`, hence Any.
        import ray

        worker, folder = ray.get(shared)
        self._attempts, self._tries = attempts, tries
        self._computer = LocalComputer(worker, threads)
        self._expected = expected
        _enter(folder)

    def __call__(self, rows: _Rows) -> Iterator[_Rows]:
        starts = [int(start) for group in rows["starts"] for start in group]
        try:
            self._check_attempts(starts[0])
            self._check_environment()
            for chunk in self._computer.chunks(starts):
                yield _row(chunk.to_bytes(), "")
        except DecExportError as error:
            yield _row(b"", _described(error))

    def _check_attempts(self, start: int) -> None:
        import ray

        if ray.get(self._attempts.count.remote(start)) > self._tries:
            raise DataError(
                f"The worker died {self._tries} times on the images from number {start} on, so its machine may have "
                "too little memory: give a smaller --batch, or fewer baselines."
            )

    def _check_environment(self) -> None:
        if self._expected is None:
            return
        difference = self._computer.environment().difference(self._expected)
        if difference is not None:
            raise DataError(
                f"The worker on {socket.gethostname()} has {difference}, so its numbers could differ from those of the "
                "others: give all machines of the cluster the same libraries and processors."
            )
        self._expected = None


def _probe(shared: tuple[Worker, str]) -> Environment | str:
    """Load the models in a worker process, and return its environment, or the description of a user's error."""
    worker, folder = shared
    _enter(folder)
    try:
        _check_files(worker)
        return LocalComputer(worker, 1).environment()
    except DecExportError as error:
        return _described(error)


def _enter(folder: str) -> None:
    """Make relative paths mean the same as in the process that started the evaluation, where that is possible."""
    if os.path.isdir(folder):
        os.chdir(folder)


def _check_files(worker: Worker) -> None:
    """Raise DataError when a worker cannot read the bundles or the first image."""
    image = worker.plan.data.samples[0].image
    paths = [model.bundle for model in worker.plan.models]
    paths.append(image.path if isinstance(image, FileSource) else image.archive)
    missing = next((path for path in paths if not os.access(path, os.R_OK)), None)
    if missing is not None:
        raise DataError(
            f"The worker on {socket.gethostname()} cannot read '{missing}': put bundles and images in a folder that "
            "all machines of the cluster share."
        )


def _row(content: bytes, error: str) -> _Rows:
    return {"content": np.array([content], object), "error": np.array([error], object)}


def _described(error: DecExportError) -> str:
    return f"{type(error).__name__}\n{error}"


def _raise_if_error(found: Any) -> Any:  # what a worker returned
    """Return what a worker returned, unless it is the description of a user's error, which is raised."""
    if not isinstance(found, str):
        return found
    kind, message = found.split("\n", 1)
    raise getattr(errors, kind, DataError)(message)


def _as_sentence(error: Exception) -> DataError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    return DataError(
        f"The cluster could not finish the work ({reason}): see Ray's logs, and repeat the command with --resume."
    )


def _resources() -> dict[str, float]:
    """Return the number of CPUs and GPUs of the cluster."""
    import ray

    # Ray has types, but not of this function, hence Any.
    resources: Any = ray.cluster_resources
    return dict(resources())


def _may_use_gpu(models: Sequence[ModelSource]) -> bool:
    return any(model.engine == RUNNING or engine_spec(model.engine).needs_gpu for model in models)


def _connect(address: str, stack: ExitStack) -> None:
    """Join the cluster at an address, or start one. Leaving the stack leaves it, or ends it."""
    import ray

    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_BYTES}
        options["_temp_dir"] = folder
    else:
        _check_reachable(address)
    try:
        with _silence():
            ray.init(address=address, **options)
    except Exception as error:  # Ray raises errors of many classes.
        message = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"Ray does not start or join a cluster at '{address}': {message}") from error
    stack.callback(ray.shutdown)


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what is written to stderr: Ray's processes keep it, and its libraries write there past Python."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_reachable(address: str) -> None:
    """Raise DataError unless something listens at HOST:PORT. Ray itself would try for minutes."""
    if address == RUNNING:
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        raise DataError(
            f"--ray must be local, auto or HOST:PORT, found '{address}': start the command on a machine of the cluster."
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError) as error:
        raise DataError(
            f"There is no Ray cluster at '{address}' ({error}): start one with 'ray start --head', or use --ray local."
        ) from error


def _be_quiet() -> None:
    """Keep Ray Data's reports of its own progress off the terminal."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
