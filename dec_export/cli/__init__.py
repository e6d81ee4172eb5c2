"""The command line: one file for each command; each parses, calls the library and renders."""

from dec_export.cli.app import main

__all__ = ["main"]
