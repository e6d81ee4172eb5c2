"""The floating-point formats of a model's parts.

The backbone may run in 16 bits, and so may the canonicalizer's networks. Images, logits, phi, sampling grids,
index arithmetic and the solver's mixing stay in float32, because an error of a sampling coordinate is multiplied by the
image's size and amplified by every step that follows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dec_export.errors import DecExportError
from dec_export.formats import BACKBONE_FORMATS, SOLVER_FORMATS, Format

# ONNX has no bfloat16 form of convolutions, poolings, and InstanceNormalization, as which group norms are exported.
_WITHOUT_BFLOAT16 = (nn.Conv2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def check_precision(precision: str, solver_precision: str) -> tuple[Format, Format]:
    """Return the formats of the backbone and of the canonicalizers' convolutions, given as formats or as their names.

    Raises DecExportError for an unknown name, or a format that this part of a model cannot have.
    """
    if precision not in BACKBONE_FORMATS:
        raise DecExportError(f"Unknown precision '{precision}', expected one of {', '.join(BACKBONE_FORMATS)}.")
    if solver_precision not in SOLVER_FORMATS:
        raise DecExportError(
            f"Unknown solver precision '{solver_precision}', expected one of {', '.join(SOLVER_FORMATS)}: "
            "ONNX has no bfloat16 convolution at the opset that TensorRT's GridSample needs."
        )
    return Format(precision), Format(solver_precision)


def cast_backbone(backbone: nn.Module, precision: Format) -> None:
    """Round a backbone's weights in place; operators that ONNX lacks in bf16 stay in float32, between two casts."""
    if precision is Format.FP32:
        return
    backbone.to(precision.torch)
    if precision is Format.BF16:
        for module in backbone.modules():
            if isinstance(module, _WITHOUT_BFLOAT16):
                _keep_float32(module, torch.bfloat16)


def cast_head(head: nn.Module, precision: Format) -> None:
    """Round a head's weights in place; its batch norms stay in float32, as their statistics may not fit 16 bits."""
    cast_backbone(head, precision)
    if precision is not Format.FP32:
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                _keep_float32(module, precision.torch)


def _keep_float32(module: nn.Module, around: torch.dtype) -> None:
    def widen(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(argument.float() for argument in arguments)

    def narrow(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output.to(around)

    module.float()
    module.register_forward_pre_hook(widen)
    module.register_forward_hook(narrow)


def entry_dtype(backbone: nn.Module) -> torch.dtype:
    """Return the dtype in which a backbone takes images, which is that of its first convolution."""
    return next(m.weight.dtype for m in backbone.modules() if isinstance(m, nn.Conv2d))
