"""Running the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "dec_export"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=300
    )


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """Run a command that must fail as a user's mistake, and return its sentence."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return line


def dec_export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dec_export", *map(str, arguments)], capture_output=True, text=True)
