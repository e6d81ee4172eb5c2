"""How fast the solver converges: the residual of every iterate, of the reference and of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dec_export.names import solver_tensor

Outputs = Mapping[str, NDArray[Any]]


def residuals(engine: Outputs, reference: Outputs) -> dict[str, dict[str, Any]]:
    """For each layer, `residuals_of_layer` of the float64 reference and of the engine.

    The engine's is None when it does not show its iterates: a compiled engine, or a solver in a loop.
    """
    layers = sum(name.startswith("phi_x_") for name in reference)
    return {
        f"phi_{layer}": {
            name: _of_layer(outputs, layer) for name, outputs in (("reference", reference), ("engine", engine))
        }
        for layer in range(layers)
    }


def _of_layer(outputs: Outputs, layer: int) -> list[float] | None:
    """The median over the images of || f(z_k) - z_k ||_2, for k = 0, 1, ..., where z_0 is constant and z_1 = f(z_0)."""
    found: list[float] = []
    iterate: NDArray[Any] | None = np.ones(())
    while (image := outputs.get(solver_tensor(layer, "image", len(found)))) is not None:
        if iterate is None:
            return None
        difference = image.astype(np.float64) - iterate
        found.append(float(np.median(np.linalg.norm(difference.reshape(len(image), -1), axis=1))))
        iterate = image if len(found) == 1 else outputs.get(solver_tensor(layer, "iterate", len(found)))
    return found if len(found) > 2 else None
