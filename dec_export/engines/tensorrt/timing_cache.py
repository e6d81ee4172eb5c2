"""TensorRT's timing cache, which holds the timings of one GPU, so that the next build need not measure them again.

It only saves time, so a folder that cannot be read or written costs only this time. TensorRT for RTX measures nothing
in a build and has no such cache.

A build uses a copy of the cache. Its timings are stored under a lock, and merged with those that another build has
stored in the meantime, so that no timings are lost. Only TensorRT can read a timing cache, so the merge runs in a
separate process, as a build does.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any  # TensorRT ships no types

from filelock import FileLock

from dec_export.cache import user_cache
from dec_export.children import python_command
from dec_export.engines.tensorrt.flavours import Flavour
from dec_export.engines.tensorrt.plan import dotted
from dec_export.files import write_atomically
from dec_export.gpu import Gpu

_LOGGER = logging.getLogger(__name__)
# The holder of the lock reads, merges and writes a few megabytes.
_LOCK_SECONDS = 120.0
_MERGER = python_command("from dec_export.engines.tensorrt.timing_cache import main\nmain()")

# A function that merges two timing caches into one. It raises OSError when they cannot be merged.
Merge = Callable[[bytes, bytes], bytes]


def default_folder() -> Path:
    """Return the default folder of timing caches, which is in the user's cache folder."""
    return user_cache("timing")


def file_name(flavour: Flavour, version: str, cuda: str | None, gpu: Gpu) -> str:
    """Return the name of a cache's file, which contains the GPU and the versions of TensorRT and CUDA."""
    release = cuda or gpu.cuda
    return f"{flavour.name}-{version}-cuda{release}-{gpu.slug}-sm{dotted(gpu.compute_capability)}.cache"


def borrow(kept: Path, working: Path) -> bool:
    """Copy the stored cache, if there is one, to a file for a build. Return False when timings cannot be stored."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if kept.is_file():
            shutil.copyfile(kept, working)
            _borrowed(working).write_text(_digest(working.read_bytes()), encoding="ascii")
    except OSError as error:
        _warn(kept, error)
        return False
    return True


def keep(working: Path, kept: Path, merge: Merge | None = None) -> bool:
    """Store the timings of a build. Return False when there are none, or when they cannot be stored.

    When the stored cache differs from the one that the build copied, another build has ended in the meantime, and
    `merge`, by default TensorRT's function, merges the two. If that fails, this build's timings replace the others.
    """
    if not working.is_file():
        return False
    try:
        measured = working.read_bytes()
        with FileLock(kept.with_name(f".{kept.name}.lock"), timeout=_LOCK_SECONDS):
            write_atomically(kept, _joined(working, measured, kept, merge or merge_with_tensorrt))
    except (OSError, NotImplementedError) as error:  # File systems without locks raise either error.
        _warn(kept, error)
        return False
    return True


def _joined(working: Path, measured: bytes, kept: Path, merge: Merge) -> bytes:
    """Return the timings of a build, merged with those that others have stored since it copied the cache."""
    others = kept.read_bytes() if kept.is_file() else b""
    borrowed = _borrowed(working)
    if not others or (borrowed.is_file() and borrowed.read_text(encoding="ascii") == _digest(others)):
        return measured
    try:
        return merge(others, measured)
    except OSError as error:
        _LOGGER.warning("Timings that another build kept in '%s' are lost: %s", kept, error)
        return measured


def merge_with_tensorrt(others: bytes, measured: bytes) -> bytes:
    """Merge two timing caches with TensorRT in a separate process. Raises OSError when it cannot merge them."""
    with tempfile.TemporaryDirectory(prefix="dec-export-") as scratch:
        first, second, merged = (Path(scratch) / name for name in ("others", "measured", "merged"))
        first.write_bytes(others)
        second.write_bytes(measured)
        command = [*_MERGER, str(first), str(second), str(merged)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603 - the module is our own
        if done.returncode != 0 or not merged.is_file():
            reason = [f"its process ended with {done.returncode}", *done.stderr.strip().splitlines()][-1]
            raise OSError(f"TensorRT could not merge them ({reason})")
        return merged.read_bytes()


def main() -> None:
    """Merge the first two files that the command line names into the third."""
    import tensorrt as trt

    first, second, merged = map(Path, sys.argv[-3:])
    merged.write_bytes(combine(trt, first.read_bytes(), second.read_bytes()))


def combine(trt: Any, others: bytes, measured: bytes) -> bytes:
    """Merge two timing caches with the TensorRT module `trt`. The second cache wins where both have a timing.

    Raises OSError when TensorRT refuses one of them as damaged, or as made by another version or on another GPU.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    # TensorRT keeps the entry of the cache into which the other one is merged.
    cache, addition = config.create_timing_cache(measured), config.create_timing_cache(others)
    if cache is None or addition is None or not cache.combine(addition, False):
        raise OSError("TensorRT does not accept the two caches as timings of one GPU")
    return bytes(cache.serialize())


def _borrowed(working: Path) -> Path:
    """Return the file that holds the hash of the cache that a build copied."""
    return working.with_name(f"{working.name}.borrowed")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _warn(kept: Path, error: Exception) -> None:
    _LOGGER.warning("Timings cannot be kept in '%s': %s", kept.parent, error)
