"""Matrices of fixed linear maps.

An antialiased resize, a pooling with uneven windows, a blur and a cumulative sum of fixed size are linear, so each of
them gives its matrix when it is applied to the identity. ONNX has no exact operator for the first two, and every
runtime has MatMul. Matrices are computed in float64 and rounded once, to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from dec_export.reference.warp import smoothing_kernel


def matrix_of(linear_map: Callable[[Tensor], Tensor], size: int) -> Float64[Tensor, "m {size}"]:
    """Return the matrix of a linear map that acts on the rows of a map (1, 1, size, size) and keeps its columns."""
    return linear_map(torch.eye(size, dtype=torch.float64)[None, None])[0, 0]


def resize_matrix(
    size: int, new_size: int, *, align_corners: bool, antialias: bool, mode: str = "bilinear"
) -> Float64[Tensor, "{new_size} {size}"]:
    """Return the matrix of a resize along one axis; `mode` is "bilinear" or "bicubic"."""
    return matrix_of(
        lambda eye: F.interpolate(
            eye, size=(new_size, size), mode=mode, align_corners=align_corners, antialias=antialias
        ),
        size,
    )


def adaptive_pool_matrix(size: int, resolution: int) -> Float64[Tensor, "{resolution} {size}"]:
    """Return the matrix of adaptive average pooling along one axis."""
    return matrix_of(lambda eye: F.adaptive_avg_pool2d(eye, (resolution, size)), size)


def smoothing_matrix(size: int) -> Float64[Tensor, "{size} {size}"]:
    """Return the matrix of the warp's Gaussian smoothing along one axis."""
    kernel = smoothing_kernel(torch.float64)
    signals = F.pad(torch.eye(size, dtype=torch.float64)[:, None], [len(kernel) // 2] * 2, mode="reflect")
    return F.conv1d(signals, kernel[None, None])[:, 0].T


def reflect_matrix(size: int, padding: int) -> Float64[Tensor, "{size}+2*{padding} {size}"]:
    """Return the matrix of reflect padding along one axis."""
    return matrix_of(lambda eye: F.pad(eye, [0, 0, padding, padding], mode="reflect"), size)


def box_matrix(size: int, kernel: int) -> Float64[Tensor, "{kernel} {size}"]:
    """Return the matrix of the means over the windows that the taps of a convolution read, along one axis.

    `size` includes the padding. Row i gives the mean of the size - kernel + 1 values from i on.
    """
    window = size - kernel + 1
    return torch.stack(
        [F.pad(torch.full((window,), 1 / window, dtype=torch.float64), [i, kernel - 1 - i]) for i in range(kernel)]
    )


def accumulation_matrix(steps: int) -> Float64[Tensor, "{steps}+1 {steps}"]:
    """Return the matrix of a cumulative sum along one axis that starts with zero."""
    return torch.tril(torch.ones(steps + 1, steps, dtype=torch.float64), diagonal=-1)
