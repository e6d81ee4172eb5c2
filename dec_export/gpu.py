"""The GPU of this machine, if there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

ABSENT = "there is no GPU here that CUDA can use"
_NO_CUDA = "PyTorch, which finds the GPUs, was built without CUDA here"


@dataclass(frozen=True)
class Gpu:
    """The first GPU that CUDA sees. compute_capability: (major, minor). cuda: the version of PyTorch's CUDA runtime."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    cuda: str

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-").lower()


def find_gpu() -> Gpu | None:
    """Return the GPU that PyTorch would use, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(
        properties.name,
        (properties.major, properties.minor),
        properties.total_memory,
        str(torch.version.cuda),
    )


def why_no_gpu() -> str:
    """Return a clause that says why `find_gpu` finds no GPU."""
    import torch

    return ABSENT if torch.version.cuda else _NO_CUDA


def driver_version() -> str | None:
    """Return the NVIDIA driver's version from nvidia-smi, or None without that program or without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)  # noqa: S603 - the program is on the PATH
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None
