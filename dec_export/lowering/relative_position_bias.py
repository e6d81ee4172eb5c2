"""Relative position biases as constants.

Swin and BEiT gather each attention's bias from a table at every call. At inference it never changes; left in
place, BEiT's gather also stops torch 2.15's dynamic export, which sees a shape it cannot prove.
"""

from __future__ import annotations

from torch import Tensor, nn


def freeze_relative_position_bias(backbone: nn.Module) -> None:
    """Replace, in place, every module's gathered bias by its value."""
    for module in backbone.modules():
        if hasattr(module, "_get_rel_pos_bias") and getattr(module, "relative_position_bias_table", None) is not None:
            _freeze(module)


def _freeze(module: nn.Module) -> None:
    bias: Tensor = module._get_rel_pos_bias().detach().clone()  # type: ignore[operator]
    module.register_buffer("frozen_relative_position_bias", bias, persistent=False)
    module._get_rel_pos_bias = lambda: module.frozen_relative_position_bias  # type: ignore[assignment]
