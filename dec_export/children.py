"""Starting Python in a process of its own, so that files in the current folder cannot stand in for libraries.

`python -c` and `python -m` search the current folder for modules before all others: a `json.py` that lies beside
somebody's bundle would run. Every child that dec-export starts is therefore started through `python_command`.
"""

from __future__ import annotations

import sys

# `sys` is built into the interpreter, and Python 3.10 has no option for this (-P came with 3.11; -I would also ignore
# PYTHONPATH and the user's own packages, in which dec-export itself may be installed).
_FORGET_CURRENT_FOLDER = "import sys\nif not getattr(sys.flags, 'safe_path', False): del sys.path[0]\n"


def python_command(code: str) -> list[str]:
    """The command that runs `code` with this interpreter and without the current folder on `sys.path`."""
    return [sys.executable, "-c", _FORGET_CURRENT_FOLDER + code]
