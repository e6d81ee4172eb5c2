"""Decodes images and prepares them for a model, in the Python backend of Triton Inference Server.

Self-contained: beside the server's own module it needs NumPy and Pillow. It computes what torchvision's Resize,
CenterCrop, ToTensor and Normalize compute, to the bit.
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
    """What is wrong with an image, in words for whoever sent it."""


def refusal(message: str, code: Any) -> Any:
    """A response that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class TritonPythonModel:
    """encoded (N, 1) bytes of a JPEG or PNG -> image (N, 3, S, S) float32."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read how images are prepared."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.facts = json.loads((folder / "serving.json").read_text())["preprocessing"]
        self.mean = np.asarray(self.facts["mean"], np.float32)
        self.std = np.asarray(self.facts["std"], np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order; a bad image fails its own request alone."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """The images of one request, or an error: whatever happens here stays in this request."""
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
        """One image (3, S, S). Raises RefusedError if the bytes are no image that can be taken."""
        return self.normalised(self.resized(self.decoded(encoded)))

    def decoded(self, encoded: bytes) -> Image.Image:
        """The picture, of no more pixels than allowed: its header is read before its pixels."""
        limit = self.facts["max_pixels"]
        if not isinstance(encoded, bytes) or len(encoded) > self.facts["max_bytes"]:
            raise RefusedError(f"expected an encoded image of at most {self.facts['max_bytes']} bytes")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the limit below is stricter than Pillow's
                with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
                    if image.width * image.height > limit:
                        raise RefusedError(f"the image has more than {limit} pixels")
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
        """The shorter side, or with `squash` both, brought to the size before the crop."""
        target = math.floor(self.facts["size"] / self.facts["crop_pct"])
        width, height = image.size
        scaled = target if self.facts["squash"] else int(target * max(width, height) / min(width, height))
        if target * scaled > self.facts["max_pixels"]:
            raise RefusedError("the image is too long and narrow")
        size = (target, scaled) if width <= height else (scaled, target)
        filter_ = Image.Resampling[self.facts["interpolation"].upper()]
        return image if size == image.size else image.resize(size, filter_)

    def normalised(self, image: Image.Image) -> Any:
        """The central square, scaled to [0, 1], less the mean, over the deviation."""
        size = self.facts["size"]
        left, top = (round((side - size) / 2.0) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
        scaled = ((pixels / np.float32(255)) - self.mean) / self.std
        return np.ascontiguousarray(np.ascontiguousarray(scaled).transpose(2, 0, 1))
