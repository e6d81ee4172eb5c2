"""`python -m dec_export` runs the command `dec-export`.

Python puts the current folder first on `sys.path`. This module removes it before any other import, so that a file in
the current folder cannot be imported instead of a library.
"""

import sys

if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from dec_export.cli import main

main()
