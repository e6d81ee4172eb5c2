"""The command line. Every command has a file, which parses the options, calls the library and renders the result."""

from dec_export.cli.app import main

__all__ = ["main"]
