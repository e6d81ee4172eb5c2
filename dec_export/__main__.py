"""`python -m dec_export` is `dec-export`.

Python has put the current folder first on `sys.path`; it is taken off before anything else is imported, so that no file
of a folder that holds somebody's bundle stands in for a library.
"""

import sys

if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from dec_export.cli import main

main()
