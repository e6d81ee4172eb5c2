"""The names and contents of the files in a model repository."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from dec_export.bundle.manifest import FileEntry
from dec_export.data.preprocessing import MAX_SCANNED_PIXELS, Preprocessing

CONFIG: Final = "config.pbtxt"
LABELS: Final = "labels.txt"
FACTS: Final = "serving.json"
RECORD: Final = "dec_export.json"

# The content of a file is given as bytes, or as the path of a file to copy.
Content = bytes | Path


class _Facts(BaseModel):
    """The fields of the `serving.json` that a `model.py` reads when it starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Return the content of `serving.json`."""
        return to_json(self)


class EngineFacts(_Facts):
    """The fields for `engine_model.py`.

    Attributes:
        engine: "onnxruntime", or the flavour of TensorRT that runs the plan.
        model: the name of the ONNX file or of the plan, beside `serving.json`.
        version: the version of TensorRT that built the plan; None for ONNX Runtime.
        threads: the number of ONNX Runtime's threads; 0 means that it chooses the number.
        files: the size and the hash of the model's file, which are checked before it is loaded.
    """

    engine: str
    model: str
    version: str | None
    threads: int
    files: dict[str, FileEntry]


class ServedPreprocessing(_Facts):
    """The fields of `data.images.Preprocessing`, and the size of the largest images that a server decodes.

    max_pixels: the largest width times height. max_scanned_pixels: the largest product of an image's pixels and the
    scans of a JPEG that are decoded. max_bytes: the largest size of the encoded file.
    """

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool
    max_pixels: int
    max_scanned_pixels: int
    max_bytes: int


class PreprocessFacts(_Facts):
    """The fields for `preprocess_model.py`."""

    preprocessing: ServedPreprocessing

    @classmethod
    def of(cls, preprocessing: Preprocessing, max_pixels: int, max_bytes: int) -> PreprocessFacts:
        """Combine a bundle's preprocessing with a server's limits."""
        served = ServedPreprocessing(
            size=preprocessing.size,
            crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            squash=preprocessing.squash,
            max_pixels=max_pixels,
            max_scanned_pixels=MAX_SCANNED_PIXELS,
            max_bytes=max_bytes,
        )
        return cls(preprocessing=served)


class PostprocessFacts(_Facts):
    """The fields for `postprocess_model.py`.

    task: the name of the task. labels: the name of each class. top_k: the number of classes in an answer.
    """

    task: str
    labels: tuple[str, ...]
    top_k: int


def to_json(model: BaseModel) -> bytes:
    """Return a pydantic model as the content of a JSON file, in which text that is not ASCII is escaped."""
    return (json.dumps(model.model_dump(mode="json"), indent=1) + "\n").encode()


def python_model(source: str, facts: _Facts) -> dict[str, Content]:
    """Return the files of a version of a model for the Python backend: a file of `python_models`, and its fields."""
    code = (resources.files("dec_export.serving.triton.python_models") / source).read_bytes()
    return {"model.py": code, FACTS: facts.to_json()}
