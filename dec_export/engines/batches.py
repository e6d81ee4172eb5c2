"""The check that an exported model runs at every batch size.

An exporter can silently specialise a dimension: the graph still declares a free batch and passes every static check,
but contains a Reshape to the example's size. Only runs at other batch sizes show this.
"""

from __future__ import annotations

import numpy as np
import onnx

from dec_export.data.images import synthetic_images
from dec_export.engines.onnxruntime import OnnxRuntimeEngine
from dec_export.errors import EngineError, ExportError
from dec_export.onnx_export.passes.widen import has_bfloat16

# The exporter's example has two images.
BATCHES = (1, 3)


def check_batches(proto: onnx.ModelProto, image_size: int) -> None:
    """Run the model at batch sizes that differ from that of the exporter's example. Raises ExportError when one fails.

    Every output must have one finite row for each image. The parity check tests how accurate the rows are.
    """
    engine = OnnxRuntimeEngine(proto, bfloat16=has_bfloat16(proto))
    images = synthetic_images(image_size, max(BATCHES)).array
    for batch in BATCHES:
        try:
            outputs = engine(images[:batch])
        except EngineError as error:
            raise ExportError(
                f"The exported model does not run at every batch size, please report this: {error}"
            ) from error
        for name, value in outputs.items():
            if value.shape[0] != batch or not np.isfinite(value).all():
                raise ExportError(
                    f"At a batch of {batch}, the exported model's '{name}' has shape {value.shape} "
                    f"and {np.count_nonzero(~np.isfinite(value))} values that are not finite."
                )
