"""The requests that a server is loaded with: good ones with their right answers, and bad ones that it must refuse."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.bundle.store import Bundle
from dec_export.data.images import open_image
from dec_export.engines.base import Engine
from dec_export.serving.triton.check import encoded, prepared
from dec_export.serving.triton.client import Answer
from dec_export.serving.triton.judge import distance, expected_logits, same_answer, tolerance_of
from dec_export.serving.triton.options import TOP_K
from dec_export.tasks import Task, task_named

Judge = Callable[[Answer], bool]


@dataclass(frozen=True)
class Request:
    """What is sent, and what must come back: an answer that `right` accepts, or else an error with the words `refusal`.

    kind: names the request in counts. model: the model on the server. name, value: its input, which is float32 or an
    array of bytes objects. outputs: the outputs that are asked for.
    """

    kind: str
    model: str
    name: str
    value: NDArray[Any]  # NumPy has no type for "float32 or objects".
    outputs: tuple[str, ...]
    right: Judge | None = None
    refusal: str = ""


def good_requests(bundle: Bundle, engine: Engine, model: str, paths: Sequence[Path]) -> list[Request]:
    """Two requests for each image: encoded for the ensemble, and as a tensor for the model.

    The right answers are those of the bundle's engine.
    """
    found, tolerance = [], tolerance_of(bundle)
    task, backbone = task_named(bundle.recipe.task), bundle.recipe.backbone
    ensemble = f"{model}_{task.ensemble}"
    answers = task.answers(min(TOP_K, backbone.num_classes), bundle.recipe.image_size)
    outputs = tuple(answer.name for answer in answers)
    for path in paths:
        image, content = prepared(bundle.preprocessing, path), encoded(path.read_bytes())
        expected = expected_logits(engine, image)
        found.append(
            Request("image", ensemble, "encoded", content, outputs, _same_classes(task, expected[0], tolerance))
        )
        found.append(Request("tensor", model, "image", image, ("logits",), same_logits(expected, tolerance)))
    return found


def _same_classes(task: Task, logits: NDArray[np.float32], tolerance: float) -> Judge:
    return lambda answer: same_answer(task, answer, logits, tolerance)


def same_logits(expected: NDArray[np.float32], tolerance: float) -> Judge:
    """A judge that accepts logits whose largest difference is at most this share of the largest expected logit."""
    return lambda answer: distance(answer["logits"], expected) <= tolerance


def bad_requests(good: Sequence[Request], path: Path) -> list[Request]:
    """A truncated JPEG, an image of 50 megapixels, a wrong shape and NaN in an image, each with its refusal.

    good: an encoded image and a tensor, from which the bad requests are made. path: an image file.
    """
    image, tensor = good[0], good[1]
    buffer = io.BytesIO()
    open_image(path).save(buffer, "JPEG")
    cut = encoded(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    poisoned = tensor.value.copy()
    # Not the first pixel, because a warp that clamps NaN coordinates to the corner reads that one everywhere.
    poisoned[0, 2, poisoned.shape[2] // 2, poisoned.shape[3] // 3] = np.nan
    narrower = np.ascontiguousarray(tensor.value[..., 1:])
    huge = encoded(huge_png())
    return [
        Request("truncated JPEG", image.model, "encoded", cut, image.outputs, refusal="not a whole JPEG or PNG"),
        Request("50 megapixels", image.model, "encoded", huge, image.outputs, refusal="pixels"),
        Request("wrong shape", tensor.model, "image", narrower, tensor.outputs, refusal="unexpected shape"),
        Request("NaN", tensor.model, "image", poisoned, tensor.outputs, refusal="NaN"),
    ]


def huge_png(width: int = 10_000, height: int = 5_000) -> bytes:
    """A PNG of 50 megapixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
