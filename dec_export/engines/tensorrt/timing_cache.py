"""TensorRT's timing cache: what it measured on one GPU, kept so that the next build need not measure it again.

It saves time and changes nothing else, so a folder that cannot be read or written costs only that time.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from dec_export.cache import user_cache
from dec_export.engines.tensorrt.flavours import Flavour
from dec_export.engines.tensorrt.plan import dotted
from dec_export.gpu import Gpu

_LOGGER = logging.getLogger(__name__)


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
    except OSError as error:
        _LOGGER.warning("Timings cannot be kept in '%s': %s", kept.parent, error)
        return False
    return True


def keep(working: Path, kept: Path) -> bool:
    """Put a build's cache in place by a rename, so that readers see all of it or the old one; False when it fails."""
    if not working.is_file():
        return False
    try:
        with tempfile.TemporaryDirectory(prefix=f".{kept.name}.", dir=kept.parent) as beside:
            os.replace(shutil.copyfile(working, Path(beside) / kept.name), kept)
    except OSError as error:
        _LOGGER.warning("Timings cannot be kept in '%s': %s", kept.parent, error)
        return False
    return True
