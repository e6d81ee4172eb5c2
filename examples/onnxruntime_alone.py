"""Run a bundle with ONNX Runtime alone: no dec-export, no PyTorch.

    python examples/onnxruntime_alone.py BUNDLE IMAGE

The manifest says how an image becomes the model's input. These are the steps of timm's evaluation pipeline: resize the
shorter side, crop the centre, scale to [0, 1], normalise.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def prepare(image, preprocessing):
    """A PIL image as the model's input, (1, 3, size, size) float32."""
    size, filter_ = preprocessing["size"], Image.Resampling[preprocessing["interpolation"].upper()]
    target = int(size / preprocessing["crop_pct"])
    short, long = min(image.size), max(image.size)
    scaled = target if preprocessing["squash"] else int(target * long / short)
    new_size = (target, scaled) if image.width <= image.height else (scaled, target)
    resized = image.convert("RGB").resize(new_size, filter_)
    left, top = (round((side - size) / 2) for side in resized.size)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / np.float32(255)
    normalised = (pixels - np.float32(preprocessing["mean"])) / np.float32(preprocessing["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))[None]


def main():
    bundle, picture = Path(sys.argv[1]), Path(sys.argv[2])
    manifest = json.loads((bundle / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    image = prepare(Image.open(picture), manifest["preprocessing"])
    (logits,) = session.run(["logits"], {"image": image})
    print(json.dumps({"class": int(logits[0].argmax()), "logit": float(logits[0].max())}))


if __name__ == "__main__":
    main()
