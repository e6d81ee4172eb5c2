"""`python -m dec_export` is `dec-export`."""

from dec_export.cli import main

main()
