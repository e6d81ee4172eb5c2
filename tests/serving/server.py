"""A real Triton Inference Server without a GPU and without a container, for the tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import onnxruntime
import pytest

from dec_export.cache import user_cache

WHEEL_VERSION = "0.7.0"  # carries server 2.51
STAND_INS = ("onnxruntime", "tensorrt")
SWITCH = "DEC_EXPORT_NO_TRITON_SERVER"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBPYTHON = Path(sysconfig.get_config_var("LIBDIR") or "/", f"libpython{_PYTHON}.so.1.0")
_SERVER = "pytriton/tritonserver"
_STUB = "triton_python_backend_stub"


def why_no_server() -> str | None:
    """Why this platform cannot run the server; None where it can. A failed download is no reason: it is an error."""
    if os.environ.get(SWITCH):
        return f"{SWITCH} is set"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the server's wheel is for 64-bit x86 Linux"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
        return f"the server's wheel needs glibc 2.35 or newer, this is {libc} {version}"
    if sys.version_info >= (3, 13):
        return "the server's Python backend needs NumPy 1, which has no wheel for Python 3.13"
    if not _LIBPYTHON.exists():
        return f"the server's Python backend loads {_LIBPYTHON}, which this Python lacks"
    return None


needs_server = pytest.mark.skipif(why_no_server() is not None, reason=why_no_server() or "")


def server_home() -> Path:
    """A folder with `server/` (the wheel, unpacked) and `venv/` (what models import), made once for each user."""
    home = user_cache(f"triton-server-{WHEEL_VERSION}-py{platform.python_version()}-ort{onnxruntime.__version__}")
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_name(f"{home.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of pytest want it at once; the second waits for the first
        if not (home / "venv" / "bin" / "python").exists():  # also where the Python that it links to was removed
            shutil.rmtree(home, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}.") as scratch:
                made = Path(scratch) / "home"
                _make(made)
                made.rename(home)
    return home


class TritonServer:
    """A server on free ports of the loopback address, from `with` to the end of its block.

    `repository` is the model repository; `work` is a folder, made where missing, for the log and the backends. With
    `stand_ins` the server has backends named "onnxruntime" and "tensorrt", which run ONNX Runtime (`standin.py`). A
    server that does not become ready raises `RuntimeError` with the end of its log.
    """

    def __init__(
        self,
        repository: Path,
        work: Path,
        *,
        stand_ins: bool = False,
        exit_on_error: bool = True,
        model_control: str = "none",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 120,
    ) -> None:
        self.repository = repository
        self.work = work
        self.stand_ins = stand_ins
        self.exit_on_error = exit_on_error
        self.model_control = model_control
        self.arguments = tuple(arguments)
        self.environment = dict(environment or {})
        self.start_timeout = start_timeout
        self.prefix = f"dec{os.getpid()}x{secrets.token_hex(4)}x"
        self.log_path = work / "server.log"
        self.returncode: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._left: list[str] = []

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def http_url(self) -> str:
        """`host:port`, as tritonclient wants it."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    def start(self) -> None:
        """Return when every model is loaded (with `exit_on_error=False`: loaded or given up)."""
        try:
            self._start()
        except RuntimeError:
            # A port that was free when it was looked up may have been taken since.
            if "already in use" not in self.log_tail():
                raise
            self._start()

    def stop(self) -> None:
        """End the server as its documentation says, then whatever it left; `leftovers` tells what that was.

        Close clients first: with an open connection the server waits its whole exit timeout (5 s), then exits with 1
        and leaves its stubs and their memory.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self.returncode = self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.returncode = self._process.wait()
        self._process = None
        self._left = [*self.processes(), *self.regions()]
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        while self.processes():
            time.sleep(0.01)
        for region in self.regions():
            Path(region).unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """Processes (pids) and shared memory (paths) that the stopped server had left."""
        assert self._process is None, "the server still runs"
        return self._left

    def metrics(self) -> dict[str, float]:
        """What the server counts, named as it prints them: `nv_inference_count{model="m",version="1"}`."""
        lines = _get(f"http://127.0.0.1:{self._ports[2]}/metrics").splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def _start(self) -> None:
        home = server_home()
        self.work.mkdir(parents=True, exist_ok=True)
        self._ports = _free_ports(3)
        # Models find their Python by PATH; the libraries of PYTHONPATH are the tests', not theirs.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {
            "PATH": f"{home / 'venv' / 'bin'}:{environment.get('PATH', '')}",
            "LD_LIBRARY_PATH": str(_LIBPYTHON.parent),
            "CUDA_VISIBLE_DEVICES": "",
        }
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                self._command(home),
                env=environment | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _command(self, home: Path) -> list[str]:
        http, grpc, metrics = self._ports
        backends = self._backends(home)
        command = [str(home / "server" / _SERVER / "bin" / "tritonserver")]
        command += [f"--model-repository={self.repository}", f"--backend-directory={backends}"]
        command += [f"--{service}-address=127.0.0.1" for service in ("http", "grpc", "metrics")]
        command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
        command += [f"--backend-config=python,shm-region-prefix-name={self.prefix}"]  # of the stand-ins, too
        command += ["--disable-auto-complete-config", "--exit-timeout-secs=5", "--allow-gpu-metrics=false"]
        command += [f"--exit-on-error={str(self.exit_on_error).lower()}", f"--model-control-mode={self.model_control}"]
        return [*command, *self.arguments]

    def _backends(self, home: Path) -> Path:
        folder = self.work / "backends"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "python").symlink_to(home / "server" / _SERVER / "backends" / "python")
        for name in STAND_INS if self.stand_ins else ():
            (folder / name).mkdir()
            shutil.copy(Path(__file__).with_name("standin.py"), folder / name / "model.py")
        return folder

    def _wait(self) -> None:
        assert self._process is not None
        # The endpoints open when loading has ended; `ready` then also says that every model was loaded.
        state = "ready" if self.exit_on_error else "live"
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"The server exited with {self._process.returncode}:\n{self.log_tail()}")
            try:
                _get(f"http://{self.http_url}/v2/health/{state}")
                self.metrics()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"The server is not {state} after {self.start_timeout} s:\n{self.log_tail()}")

    def processes(self) -> list[str]:
        """The pids of the server and of its stubs, which have the prefix among their arguments."""
        found = []
        for arguments in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if self.prefix.encode() in arguments.read_bytes():
                    found.append(arguments.parent.name)
            except OSError:  # it has just ended
                continue
        return found

    def regions(self) -> list[str]:
        """The files in shared memory of the server and its stubs."""
        return [str(path) for path in Path("/dev/shm").glob(f"{self.prefix}*")]  # noqa: S108 - no temporary file of ours


def _make(home: Path) -> None:
    downloads = home / "downloads"
    _pip("download", "--no-deps", "--only-binary=:all:", f"--dest={downloads}", f"nvidia-pytriton=={WHEEL_VERSION}")
    (wheel,) = downloads.glob("*.whl")
    stub = f"{_SERVER}/python_backend_stubs/{_PYTHON}/{_STUB}"
    wanted = ("nvidia_pytriton.libs/", f"{_SERVER}/bin/", f"{_SERVER}/backends/python/", stub)
    server = home / "server"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(server, [name for name in archive.namelist() if name.startswith(wanted)])
    shutil.rmtree(downloads)
    backend = server / _SERVER / "backends" / "python"
    (server / stub).rename(backend / _STUB)
    for program in (backend / _STUB, server / _SERVER / "bin" / "tritonserver"):
        program.chmod(0o755)
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    # With NumPy 2 the first input of type BYTES kills the stub. ONNX Runtime is the tests' own version, because answers
    # are compared to the bit.
    packages = ("numpy<2", f"onnxruntime=={onnxruntime.__version__}", "pillow>=10")
    _pip(f"--python={venv / 'bin' / 'python'}", "install", "--only-binary=:all:", *packages)


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"pip {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def _get(url: str) -> str:
    """The body of an answer with status 200; anything else is an `OSError`. The connection is closed."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - always http
        return str(answer.read().decode())
