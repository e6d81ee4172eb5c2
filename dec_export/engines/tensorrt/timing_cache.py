"""TensorRT's timing cache: what it measured on one GPU, kept so that the next build need not measure it again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dec_export.engines.tensorrt.flavours import Flavour
from dec_export.engines.tensorrt.plan import dotted
from dec_export.gpu import Gpu


def default_folder() -> Path:
    """Where timing caches are kept when nothing else is said: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dec-export" / "timing"


def file_name(flavour: Flavour, version: str, cuda: str | None, gpu: Gpu) -> str:
    """Measurements hold for one GPU, one version of TensorRT and one of CUDA; the name has all three."""
    release = cuda or gpu.cuda
    return f"{flavour.name}-{version}-cuda{release}-{gpu.slug}-sm{dotted(gpu.compute_capability)}.cache"


def borrow(kept: Path, working: Path) -> None:
    """Copy a kept cache, if there is one, to where a build may write."""
    if kept.is_file():
        shutil.copyfile(kept, working)


def keep(working: Path, kept: Path) -> None:
    """Put a build's cache in place by a rename: an interrupted build leaves the old one whole."""
    if not working.is_file():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_name(f".{kept.name}.{os.getpid()}")
    shutil.move(working, beside)
    os.replace(beside, kept)
