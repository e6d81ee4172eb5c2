"""TensorRT's timing cache: what it measured on one GPU, kept so that the next build need not measure it again.

It saves time and changes nothing else, so a folder that cannot be read or written costs only that time. TensorRT for
RTX measures nothing while it builds and has no such cache.

A build works on a copy of its own. What it measured is put in place under a lock, and merged with what another build
has kept in the meantime, so that neither loses its timings. Only TensorRT can read a timing cache: the merge runs in a
process of its own, as a build does.
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
# Whoever holds the lock reads, merges and writes a few megabytes.
_LOCK_SECONDS = 120.0
_MERGER = python_command("from dec_export.engines.tensorrt.timing_cache import main\nmain()")

# Two timing caches -> one with the measurements of both. Raises OSError when they cannot be merged.
Merge = Callable[[bytes, bytes], bytes]


def default_folder() -> Path:
    """Where timing caches are kept when nothing else is said: the user's cache folder."""
    return user_cache("timing")


def file_name(flavour: Flavour, version: str, cuda: str | None, gpu: Gpu) -> str:
    """Measurements hold for one GPU, one version of TensorRT and one of CUDA; the name has all three."""
    release = cuda or gpu.cuda
    return f"{flavour.name}-{version}-cuda{release}-{gpu.slug}-sm{dotted(gpu.compute_capability)}.cache"


def borrow(kept: Path, working: Path) -> bool:
    """Copy a kept cache, if there is one, to where a build may write; False when it cannot be kept afterwards."""
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
    """Put what a build measured in place; False when there is nothing to keep, or it cannot be kept.

    When the kept cache is not the one that the build borrowed, another build has ended in the meantime, and `merge`,
    by default TensorRT's own, joins the two. If that fails, this build's timings replace the other's.
    """
    if not working.is_file():
        return False
    try:
        measured = working.read_bytes()
        with FileLock(kept.with_name(f".{kept.name}.lock"), timeout=_LOCK_SECONDS):
            write_atomically(kept, _joined(working, measured, kept, merge or merge_with_tensorrt))
    except (OSError, NotImplementedError) as error:  # file systems without locks answer with either
        _warn(kept, error)
        return False
    return True


def _joined(working: Path, measured: bytes, kept: Path, merge: Merge) -> bytes:
    """What a build measured, with what others have kept since it borrowed its copy."""
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
    """Two timing caches as one, by TensorRT in a process of its own; OSError when it cannot merge them."""
    with tempfile.TemporaryDirectory(prefix="dec-export-") as scratch:
        first, second, merged = (Path(scratch) / name for name in ("others", "measured", "merged"))
        first.write_bytes(others)
        second.write_bytes(measured)
        command = [*_MERGER, str(first), str(second), str(merged)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603 - our own module
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
    """Two timing caches as one, by the TensorRT module `trt`; what both measured is as the second says.

    Raises OSError when TensorRT takes one of them for damaged, or made by another version or on another GPU.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    # TensorRT keeps the entry of the cache into which the other one is merged.
    cache, addition = config.create_timing_cache(measured), config.create_timing_cache(others)
    if cache is None or addition is None or not cache.combine(addition, False):
        raise OSError("TensorRT does not take the two caches for measurements of one GPU")
    return bytes(cache.serialize())


def _borrowed(working: Path) -> Path:
    """Where the hash of the cache is noted that a build borrowed."""
    return working.with_name(f"{working.name}.borrowed")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _warn(kept: Path, error: Exception) -> None:
    _LOGGER.warning("Timings cannot be kept in '%s': %s", kept.parent, error)
