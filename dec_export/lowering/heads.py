"""The folding of batch normalisation, which is an affine map of each channel at inference, into a convolution."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(head: nn.Module) -> None:
    """Fold, in place, every BatchNorm2d that follows a Conv2d in an nn.Sequential; weights are combined in float64."""
    for module in list(head.modules()):
        if isinstance(module, nn.Sequential):
            for first, second in zip(list(module), list(module)[1:], strict=False):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    _fold(module, first, second)


def _fold(sequence: nn.Sequential, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    dtype = conv.weight.dtype
    # Only a convolution in evaluation mode can be fused; the weights are rounded once, at the end.
    folded = fuse_conv_bn_eval(conv.double().eval(), norm.double().eval()).to(dtype)
    for name, child in list(sequence.named_children()):
        if child is conv:
            sequence[int(name)] = folded
        elif child is norm:
            sequence[int(name)] = nn.Identity()
