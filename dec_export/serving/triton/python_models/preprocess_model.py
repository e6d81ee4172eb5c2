"""Decode images and prepare them for a model in the Python backend of Triton Inference Server.

This file is self-contained: it needs the server's module, NumPy and Pillow. Its results are identical, bit for bit, to
those of torchvision's Resize, CenterCrop, ToTensor and Normalize.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any  # the server's module has no types

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image


class RefusedError(Exception):
    """An error that tells the client what is wrong with an image."""


def refusal(message: str, code: Any) -> Any:
    """Return a response that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class TritonPythonModel:
    """The preprocessing: encoded (N, 1) bytes of a JPEG or PNG -> image (N, 3, S, S) float32."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings of the preprocessing."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.facts = json.loads((folder / "serving.json").read_text())["preprocessing"]
        self.mean = np.asarray(self.facts["mean"], np.float32)
        self.std = np.asarray(self.facts["std"], np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response for each request, in order. A bad image fails only its own request."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """Return the images of one request, or an error, which does not affect other requests."""
        try:
            encoded = pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy()
            images = np.stack([self.prepare(item) for item in encoded.ravel()])
        except RefusedError as error:
            return refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            pb_utils.Logger.log_error(f"preprocessing failed: {type(error).__name__}: {error}")
            return refusal("the image could not be prepared", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("image", images)])

    def prepare(self, encoded: bytes) -> Any:
        """Return one image (3, S, S). Raises RefusedError if the bytes are not an image that can be used."""
        return self.normalised(self.resized(self.decoded(encoded)))

    def decoded(self, encoded: bytes) -> Image.Image:
        """Decode an image. Its header is read before its pixels, so that a too large image is refused early."""
        limit = self.facts["max_pixels"]
        if not isinstance(encoded, bytes) or len(encoded) > self.facts["max_bytes"]:
            raise RefusedError(f"expected an encoded image of at most {self.facts['max_bytes']} bytes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # The limit below is stricter than Pillow's.
                with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
                    if image.width * image.height > limit:
                        raise RefusedError(f"the image has more than {limit} pixels")
                    # Every scan of a JPEG begins with this marker, and its data cannot hold it.
                    scans = encoded.count(b"\xff\xda") if image.format == "JPEG" else 1
                    if image.width * image.height * scans > self.facts["max_scanned_pixels"]:
                        raise RefusedError(f"the image is decoded in {scans} scans, too many for its size")
                    # Pillow opens a PNG's 16-bit colours as 8-bit ones; the header tells.
                    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and encoded[24] > 8):
                        raise RefusedError("the image has more than 8 bits for each colour")
                    return image.convert("RGB")
        except (RefusedError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise RefusedError(f"the image has more than {limit} pixels") from error
        # Damaged bytes lead Pillow's decoders to errors of many classes, failed assertions among them.
        except Exception as error:
            raise RefusedError("the image is not a whole JPEG or PNG file") from error

    def resized(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side, or with `squash` both sides, to the size before the crop."""
        target = math.floor(self.facts["size"] / self.facts["crop_pct"])
        width, height = image.size
        scaled = target if self.facts["squash"] else int(target * max(width, height) / min(width, height))
        if target * scaled > self.facts["max_pixels"]:
            raise RefusedError("the image is too long and narrow")
        size = (target, scaled) if width <= height else (scaled, target)
        filter_ = Image.Resampling[self.facts["interpolation"].upper()]
        return image if size == image.size else image.resize(size, filter_)

    def normalised(self, image: Image.Image) -> Any:
        """Crop the central square, scale it to [0, 1], subtract the mean and divide by the deviation."""
        size = self.facts["size"]
        left, top = (round((side - size) / 2.0) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
        scaled = ((pixels / np.float32(255)) - self.mean) / self.std
        return np.ascontiguousarray(np.ascontiguousarray(scaled).transpose(2, 0, 1))
