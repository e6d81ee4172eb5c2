"""Errors that a user can cause or mend.

Every message is one sentence or two: what was expected, what was found, what to do. The command line
prints it and exits with 2; a traceback of any other exception is a bug of dec-export.
"""

from __future__ import annotations


class DecExportError(Exception):
    """Base of every error that dec-export raises on purpose."""


class RecipeError(DecExportError):
    """A recipe is unknown, unreadable or does not describe a model that can exist."""


class CheckpointError(DecExportError):
    """Weights are unreadable, unsafe to read, or belong to another architecture."""


class ImageError(DecExportError):
    """A folder of images, or one image in it, cannot be used."""


class ExportError(DecExportError):
    """The written ONNX model is not what was asked for."""


class BundleError(DecExportError):
    """A bundle is incomplete, altered, of another version, or cannot be written."""


class EngineError(DecExportError):
    """An engine is unknown, not installed, or cannot run on this machine."""


class ServingError(DecExportError):
    """A model repository cannot be written, or a running server does not answer as it should."""


class PrecisionError(EngineError):
    """A built engine does not compute in the precision that was asked for, or does not tell in which it does."""
