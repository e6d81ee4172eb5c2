"""Errors that a user can cause or correct.

Every message says in one or two sentences what was expected, what was found and what to do. The command line prints it
and exits with code 2. Any other exception is a defect of dec-export.
"""

from __future__ import annotations


class DecExportError(Exception):
    """The base class of every error that dec-export raises on purpose."""


class RecipeError(DecExportError):
    """A recipe is unknown, unreadable or does not describe a model that can exist."""


class CheckpointError(DecExportError):
    """Weights are unreadable, unsafe to read, or belong to another architecture."""


class ImageError(DecExportError):
    """A folder of images, or one image in it, cannot be used."""


class DataError(DecExportError):
    """A labelled data set, or one file of it, cannot be used."""


class ExportError(DecExportError):
    """The exported ONNX model differs from the one that the user asked for."""


class BundleError(DecExportError):
    """A bundle is incomplete, altered, of another version, or cannot be written."""


class EngineError(DecExportError):
    """An engine is unknown, not installed, or cannot run on this machine."""


class ServingError(DecExportError):
    """A model repository cannot be written, or a running server does not answer as it should."""


class PrecisionError(EngineError):
    """A built engine does not compute in the requested precision, or does not report its precision."""
