"""The PyTorch reference as an engine, eager, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dec_export.engines.base import check_image
from dec_export.onnx_export.export import phi_names
from dec_export.reference.model import DecModel


class TorchEngine:
    """Runs a DecModel in the dtype of its parameters."""

    name = "torch"
    smallest_batch = 1
    largest_batch: int | None = None

    def __init__(self, model: DecModel, *, expose_phi: bool = False, threads: int | None = None) -> None:
        self._model = model.eval()
        self.exposes_phi = expose_phi
        self._dtype = model.input_dtype
        if threads is not None:
            torch.set_num_threads(threads)

    def __call__(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_image(image, self._model.recipe.backbone.image_size)
        with torch.inference_mode():
            logits, phis = self._model(torch.from_numpy(image).to(self._dtype))
        outputs = {"logits": logits.numpy()}
        if self.exposes_phi:
            axes = [axis.numpy() for phi in phis for axis in phi]
            outputs |= dict(zip(phi_names(len(phis)), axes, strict=True))
        return outputs

    def describe(self) -> dict[str, Any]:
        return {
            "runtime": "PyTorch",
            "version": torch.__version__,
            "device": "cpu",
            "dtype": str(self._dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
