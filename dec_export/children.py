"""Start Python in a new process in which files of the current folder cannot be imported instead of libraries.

`python -c` and `python -m` search the current folder for modules first, so a `json.py` beside a bundle would run.
Therefore dec-export starts every Python process through `python_command`.
"""

from __future__ import annotations

import sys

# `sys` is built into the interpreter, and Python 3.10 has no option for this (-P came with 3.11; -I would also ignore
# PYTHONPATH and the user's own packages, in which dec-export itself may be installed).
_FORGET_CURRENT_FOLDER = "import sys\nif not getattr(sys.flags, 'safe_path', False): del sys.path[0]\n"


def python_command(code: str) -> list[str]:
    """Return the command that runs `code` with this interpreter and without the current folder on `sys.path`."""
    return [sys.executable, "-c", _FORGET_CURRENT_FOLDER + code]
