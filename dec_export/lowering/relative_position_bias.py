"""The replacement of relative position biases by constants.

Swin and BEiT gather each attention's bias from a table at every call, although it never changes at inference. Moreover,
the export with a dynamic batch of torch 2.15 fails on BEiT's gather, because it cannot prove the shape of its result.
"""

from __future__ import annotations

from torch import Tensor, nn


def freeze_relative_position_bias(backbone: nn.Module) -> None:
    """Replace, in place, the gathered bias of every module by its value."""
    for module in backbone.modules():
        if hasattr(module, "_get_rel_pos_bias") and getattr(module, "relative_position_bias_table", None) is not None:
            _freeze(module)


def _freeze(module: nn.Module) -> None:
    bias: Tensor = module._get_rel_pos_bias().detach().clone()  # type: ignore[operator]
    module.register_buffer("frozen_relative_position_bias", bias, persistent=False)
    module._get_rel_pos_bias = lambda: module.frozen_relative_position_bias  # type: ignore[assignment]
